"""What holds for every test."""

import signal

# A shell starts background jobs with Ctrl-C ignored, and every process that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
