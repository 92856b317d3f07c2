"""python -m benchmarks peers | quantizer | decoding | trainer | data | saving | import | growth [--help]"""

import importlib
import sys

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ("peers", "quantizer", "decoding", "trainer", "data", "saving", "import", "growth"):
        print(__doc__)
        sys.exit(2)
    importlib.import_module(f"benchmarks.{sys.argv.pop(1)}").main()
