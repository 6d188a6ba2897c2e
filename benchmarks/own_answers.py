"""The answers that lite_c2f/smollm ships: sampled anew, about an hour on two cores; a stopped call goes on.

    python benchmarks/own_answers.py [--out lite_c2f/smollm/answers.jsonl.gz] [--cache FOLDER]

Prints the file's SHA-256, which tests/smollm/test_data.py compares. Random numbers and arithmetic are those of the
machine and the libraries: elsewhere other answers may come, in other words.
"""

import argparse
import gzip
import hashlib
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # also where lite_c2f is not installed


def main() -> None:
    from lite_c2f.cli.terminal import TerminalSink
    from lite_c2f.pipeline.own_answers import fresh_answers
    from lite_c2f.smollm.data import ANSWERS, all_questions

    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=ANSWERS)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "lite_c2f-own-answers")
    arguments = parser.parse_args()
    trained, held_out = all_questions()
    answers = fresh_answers(arguments.cache / "answers.jsonl", [*trained, *held_out], TerminalSink())
    lines = "".join(json.dumps(answer._asdict(), ensure_ascii=False) + "\n" for answer in answers)
    data = gzip.compress(lines.encode(), mtime=0)
    arguments.out.write_bytes(data)
    print(json.dumps({"file": str(arguments.out), "answers": len(answers), "sha256": hashlib.sha256(data).hexdigest()}))


if __name__ == "__main__":
    main()
