import pytest

from tests.scripts.support import Clock, create_console, written


def test_plain_lines_come_seldom() -> None:
    clock = Clock()
    console = create_console(clock=clock)
    with console.step("installing") as step:
        for number in range(25):
            step.update(f"{number} of 25")
            clock.pause(1)
        step.conclude("25 packages")
    assert written(console).splitlines() == [
        "     0 s  installing ...",
        "    10 s  installing: 10 of 25",
        "    20 s  installing: 20 of 25",
        "✓   25 s  installing: 25 packages",
    ]


def test_a_terminals_line_is_redrawn_in_place() -> None:
    clock = Clock()
    console = create_console(live=True, clock=clock)
    with console.step("installing") as step:
        clock.pause(3)
        step.update("3 of 8")
    assert written(console) == (
        "\r\x1b[2K     0 s  installing ...\r"
        "\r\x1b[2K     3 s  installing: 3 of 8\r"
        "\r\x1b[2K✓    3 s  installing: 3 of 8\n"
    )


def test_a_long_line_is_cut_to_the_terminal() -> None:
    console = create_console(live=True, columns=20)
    console.draw("x" * 100)
    assert written(console) == "\r\x1b[2K" + "x" * 19 + "\r"


def test_a_line_that_stays_takes_the_place_of_the_drawn_one() -> None:
    console = create_console(live=True)
    console.draw("soon gone")
    console.say("stays")
    console.say("stays too")
    assert written(console).endswith("\r\x1b[2Kstays\nstays too\n")


def test_a_step_that_failed_says_so() -> None:
    console = create_console()
    with pytest.raises(ValueError, match="no"), console.step("installing") as step:
        step.update("3 of 8")
        raise ValueError("no")
    assert written(console).splitlines()[-1] == "✗    0 s  installing: 3 of 8"


def test_a_terminal_that_is_gone_stops_nothing() -> None:
    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    console = create_console()
    console.stream = Gone()  # type: ignore[assignment]
    console.say("nobody reads this")
