"""The console: a web page for people who look after charges. It stands on the public contract only.

Each page is made on this server of what the command and query servers say to the person who asks: the console has no identity
and no rights of its own. Without JavaScript the pages work; with it they stay fresh.
"""
