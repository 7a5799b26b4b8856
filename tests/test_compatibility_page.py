"""docs/compatibility.md says what the host tests run."""
from compatibility_table import PAGE, WORDS, page, rows


def test_the_page_is_that_of_the_data() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/compatibility_table.py"


def test_every_row_states_an_outcome_for_both_hosts_once() -> None:
    assert len({row["name"] for row in rows()}) == len(rows()) >= 100
    for row in rows():
        assert set(row["outcome"]) == {"0.3.64", "0.33.0"} and set(row["outcome"].values()) <= set(WORDS)
        assert ("says" in row) == ("refused" in row["outcome"].values()), row["name"]
        assert "note" in row or "same" not in row["outcome"].values(), row["name"]
