"""The video player: a pure state machine, its simulated and real drivers, and the DASH server.

Nothing in this package imports from the rest of the project.
"""
