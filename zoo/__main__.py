"""python -m zoo <command>."""

import sys

from zoo.cli import main as run_command


def main() -> None:
    command, argv = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    sys.exit(run_command(command, argv))


if __name__ == "__main__":
    main()
