"""The base of classes that say what differs from one of the host's: the two are put together once the host is there."""
from typing import TYPE_CHECKING

if TYPE_CHECKING:       # has every attribute and method, as the host's class will
    from typing import Any as Mixin
else:
    Mixin = object

__all__ = ["Mixin"]
