"""The read side: follows the journal's feed, keeps a view of it in SQLite, and answers queries from that.

projection   pure: what events say, as rows
view         the rows and the checkpoint, in one SQLite file
lookup       what queries look up in it
subscriber   follows the feed, verifies every record, applies it to the view; needs no grpc
feed         the feed over gRPC
waiting      who waits for a position or for a charge
api          QueryService; with pages (page tokens) and errors (what clients are told)
settings     what can be set
"""
