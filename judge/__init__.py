"""The judge: what a history must keep, and whether an observed one kept it.

    history   what was observed, as values, and what the journal's records mean by the contract
    checker   which invariant broke, and where
    files     both read from the servers' files and a bank's statement
    cli       the operator's program: it checks a live system's files and prints what broke

It shares nothing with the servers but the contract in protos/, so that they and their judge do not share a mistake. It is
installed with them, and knows neither the proof nor the tests, which use it.
"""
