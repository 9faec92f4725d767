"""Find what is wrong with a data set, and change nothing of it.

Each check is a function in a module of its own, from `CheckedData` to a `Section` of facts and findings.
"""
