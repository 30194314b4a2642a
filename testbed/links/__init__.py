"""Links that replay traces, and the proof that they did."""
