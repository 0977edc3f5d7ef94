"""The registry of models: their aliases and how these move, which one serves, what keeps one from serving, the gate before promotion, what
`llm-spark models` does, and what is kept of archived ones.
"""
