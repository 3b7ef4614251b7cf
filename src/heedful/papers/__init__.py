"""The papers' claims as code: what each says, what was found about it, and how to find it again.

`heedful.papers.registry.CLAIMS` holds all of them; `heedful claims` lists and runs them.
"""
