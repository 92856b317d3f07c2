"""python -m benchmarks peers | quantizer | decoding | trainer | data | saving | import | growth [--help]"""

import importlib
import sys

NAMES = ("peers", "quantizer", "decoding", "trainer", "data", "saving", "import", "growth")

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        print(__doc__)
        sys.exit(2)
    name = sys.argv.pop(1)
    importlib.import_module("benchmarks.startup" if name == "import" else f"benchmarks.{name}").main()  # `import` cannot be a module's name
