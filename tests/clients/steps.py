"""The steps of a test with real clients: each is attempted, also if an earlier one failed."""

import sys


class Steps:
    def __init__(self, title, count):
        """`count` is how many steps must pass, so that a step that is never attempted is a failure too."""
        self.title, self.count, self.passed, self.failed = title, count, 0, 0

    def attempt(self, name, call):
        try:
            call()
            self.passed += 1
            print("ok    ", name, flush=True)
        except Exception as error:
            self.failed += 1
            print("FAILED", name, repr(error), getattr(error, "stderr", "") or "", flush=True)

    def attempt_all(self, steps, world):
        for step in steps:
            self.attempt(step.__name__, lambda: step(world))

    def end(self):
        """Ends the program with the result."""
        print("%s: %d passed, %d failed" % (self.title, self.passed, self.failed))
        sys.exit(0 if (self.passed, self.failed) == (self.count, 0) else 1)
