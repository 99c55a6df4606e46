"""Of many similar files a plan shows one whole, and of the others what differs."""

from runbooks.reports.plans import brief

UNIT = [f"+line {n}" for n in range(12)]


def text(*lines: str, path: str = "a") -> str:
    return "\n".join(["--- /dev/null", f"+++ {path}", "@@ -0,0 +1 @@", *lines])


def test_a_file_that_is_like_an_earlier_one_has_only_what_differs() -> None:
    other = [*UNIT[:3], "+Queues=low", *UNIT[4:11]]
    details = [
        "",
        text(*UNIT),
        text(*other, path="b"),
        text(*UNIT, path="c"),
        text(*[f"+else {n}" for n in range(12)]),
    ]
    nothing, whole, like, same, another = brief(details)
    assert nothing == []
    assert whole == text(*UNIT).split("\n")
    assert like == ["as 2, except:", "+Queues=low", "without +line 11"]
    assert same == ["as 2"]
    assert another == details[4].split("\n")


def test_short_details_are_shown_as_they_are() -> None:
    assert list(brief([text("+one"), text("+one")])) == [text("+one").split("\n")] * 2
