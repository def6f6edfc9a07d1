"""A small honest stand-in for Anthropic, for trying the proxy without an account, and for its tests.

It checks requests by the API's published rules, counts tokens and cache use by the documented ones, and answers with
clearly labelled practice replies. No AI is behind it, and nothing leaves the computer.
"""
