"""The cluster: jobs as graphs of stages, a pure scheduling machine, workloads and drivers.

Nothing in this package imports from the rest of the project, except what ``player`` says about
observations that cannot be.
"""
