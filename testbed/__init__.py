"""The testbed: experiments, private networks that replay traces, results and reports."""

__version__ = "0.1.0"
