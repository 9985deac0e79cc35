"""Writes the table of doc/arguments.md from the code:  .venv/bin/python -m scripts.arguments"""

import sys
from pathlib import Path

from backends.sglang.arguments import CHOICES, FLAGS, NO_COUNTERPART, PARSERS, RENAMED, SAME
from config.unified import UNIFIED_ARGUMENTS

DOCUMENT = Path(__file__).resolve().parent.parent / "doc" / "arguments.md"
BEGIN, END = "<!-- the table is made by scripts/arguments.py -->", "<!-- end of the table -->"
COMPUTED_WORDS = {
    "enable_expert_parallel": "`--ep-size`, as large as `tensor_parallel_size`",
    "max_loras": "`--max-loras-per-batch`, one more: the model itself counts",
    "master_addr": "`--dist-init-addr`, with `master_port`",
    "master_port": "`--dist-init-addr`, with `master_addr`",
    "structured_outputs_config": "`--grammar-backend`; no other key than `backend`",
}


def table() -> str:
    rows = ["| unified, on vLLM | on SGLang |", "|---|---|"]
    rows += [f"| `{name}` | {on_sglang(name)} |" for name in sorted(UNIFIED_ARGUMENTS)]
    return "\n".join(rows)


def on_sglang(name: str) -> str:
    if name in SAME:
        others = "; ".join(f"{vllm}: `{sglang}`" for vllm, sglang in PARSERS.get(name, {}).items())
        return f"the same, but for some names: {others}" if others else "the same"
    if name in RENAMED:
        return f"`--{RENAMED[name]}`"
    if name in FLAGS:
        given, negated = map(words, FLAGS[name])
        return f"{given}; false: {negated}"
    if name in CHOICES:
        return "; ".join(f"{value}: {words(chosen)}" for value, chosen in CHOICES[name].items())
    if name in COMPUTED_WORDS:
        return COMPUTED_WORDS[name]
    return f"an error: {NO_COUNTERPART[name]}"


def words(argv: list[str]) -> str:
    return f"`{' '.join(argv)}`" if argv else "nothing"


def with_table(text: str) -> str:
    """The document with its table as the code has it."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


def main() -> int:
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
