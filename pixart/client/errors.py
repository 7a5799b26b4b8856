"""How queueing can end badly; each kind has the exit code that `pixart queue` ends with."""


class ClientError(ValueError):
    """A workflow, an option or an answer that cannot be used."""

    exit_code = 1


class Refused(ClientError):
    """The server did not take the workflow; the message names nodes and inputs."""

    exit_code = 3


class Unreachable(ClientError):
    """The server gives no answer, or forgot the prompt."""

    exit_code = 4


class Failed(ClientError):
    """A node failed while the workflow ran."""

    exit_code = 5


class Interrupted(ClientError):
    """Somebody stopped the run on the server."""

    exit_code = 6
