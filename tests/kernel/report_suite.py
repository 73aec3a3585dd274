"""jupyter_kernel_test's suite on our kernel and on the stock one, test by test, side by side.

Ends with 1 when a test fails on ours, or is skipped for another reason than that Rust has no pager.
"""

import json
import os
import subprocess
import sys
import unittest

OURS, STOCK = "tunebook", "tunebook-stock"
# What the suite has no sample for: Rust has no pager.
MAY_SKIP = {"test_pager"}


class Verdicts(unittest.TestResult):
    """A word for each test."""

    def __init__(self):
        super().__init__()
        self.words = {}

    def note(self, test, word, why=""):
        # A part of a test (`subTest`) counts for the whole of it; the first failure stays.
        name = getattr(test, "test_case", test).id().split(".")[-1]
        if self.words.get(name, ("pass",))[0] in ("pass", "skipped"):
            lines = [line for line in str(why).strip().splitlines() if line.strip()]
            told = [line for line in lines if "Error" in line] or lines[-1:]
            self.words[name] = (word, told[-1][:110] if told else "")

    def addSubTest(self, test, part, error):
        if error is not None:
            self.note(test, "FAIL", self._exc_info_to_string(error, test))

    def addSuccess(self, test):
        self.note(test, "pass")

    def addFailure(self, test, error):
        self.note(test, "FAIL", self._exc_info_to_string(error, test))

    def addError(self, test, error):
        self.note(test, "ERROR", self._exc_info_to_string(error, test))

    def addSkip(self, test, reason):
        self.note(test, "skipped", reason)


def run_here():
    """Runs the suite on the kernel that KERNEL names, and writes the verdicts as JSON on the last line."""
    import test_suite

    result = Verdicts()
    unittest.defaultTestLoader.loadTestsFromTestCase(test_suite.Suite).run(result)
    print("\n" + json.dumps(result.words))


def verdicts(kernel):
    """The same in a process of its own, as the suite is tied to one kernel."""
    ran = subprocess.run(
        [sys.executable, __file__, "--here"],
        env={**os.environ, "KERNEL": kernel},
        cwd=os.path.dirname(os.path.abspath(__file__)),
        capture_output=True,
        text=True,
    )
    try:
        return json.loads(ran.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        raise SystemExit(f"the suite did not run on {kernel}:\n{ran.stdout}{ran.stderr}") from None


def main():
    ours, stock = verdicts(OURS), verdicts(STOCK)
    print(f"{'jupyter_kernel_test':44}{'ours':>10}{'stock':>10}")
    failures = []
    for test in sorted({*ours, *stock}):
        (word, why), (peer, peer_why) = ours.get(test, ("missing", "")), stock.get(test, ("missing", ""))
        print(f"{test:44}{word:>10}{peer:>10}" + (f"   stock: {peer_why}" if peer not in ("pass", "skipped") else ""))
        if word != "pass" and not (word == "skipped" and test in MAY_SKIP):
            failures.append(f"{test} on {OURS}: {word} {why}")

    def count(words, wanted):
        return sum(word == wanted for word, _ in words.values())

    for name, words in ((OURS, ours), (STOCK, stock)):
        skipped = count(words, "skipped")
        print(f"{name}: {count(words, 'pass')} pass, {len(words) - count(words, 'pass') - skipped} fail, {skipped} skipped")
    for failure in failures:
        print(failure, file=sys.stderr)
    # A suite that found no tests would pass, too.
    return 1 if failures or len(ours) < 10 else 0


if __name__ == "__main__":
    if "--here" in sys.argv:
        run_here()
    else:
        sys.exit(main())
