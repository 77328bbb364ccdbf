-- A ledger as the mock bank of version 2 left it, without a step of the customer. Its open token lives until the year 2100.
BEGIN TRANSACTION;
CREATE TABLE transactions (
        number          INTEGER PRIMARY KEY,                                -- the order in which they were opened
        token           TEXT    NOT NULL UNIQUE,
        reference       TEXT    NOT NULL,
        kind            TEXT    NOT NULL CHECK (kind IN ('charge', 'authorize', 'capture', 'void', 'refund')),
        card            TEXT    NOT NULL,                                   -- the opening's, if it follows one
        amount          INTEGER NOT NULL CHECK (amount > 0),                -- in minor units
        currency        TEXT    NOT NULL,
        state           TEXT    NOT NULL CHECK (state IN ('created', 'executed', 'declined', 'expired', 'cancelled')),
        opened_at       INTEGER NOT NULL,
        expires_at      INTEGER NOT NULL,
        closed_at       INTEGER          CHECK ((closed_at IS NULL) = (state = 'created')),
        transaction_id  TEXT    UNIQUE   CHECK ((transaction_id IS NOT NULL) = (state = 'executed')),
        movement        INTEGER UNIQUE   CHECK ((movement IS NOT NULL) = (state = 'executed')),  -- order of execution
        reason          TEXT             CHECK ((reason IS NOT NULL) = (state = 'declined')),
        acts_on         TEXT             CHECK ((acts_on IS NULL) = (kind IN ('charge', 'authorize'))),
        final           INTEGER NOT NULL DEFAULT 0 CHECK (final IN (0, 1) AND (final = 0 OR kind = 'capture')),
        hold_expires_at INTEGER          CHECK ((hold_expires_at IS NOT NULL) = (kind = 'authorize' AND state = 'executed'))
    ) STRICT
;
INSERT INTO "transactions" VALUES(1,'ttok_f987bdabcab4ceab30f1d252a34b3230','charged','charge','tok_visa',1250,'EUR','executed',1795979463884,4102424263884,1795979463887,'txn_937d12ce4111fec71d8f37cdccbd87bc',1,NULL,NULL,0,NULL);
INSERT INTO "transactions" VALUES(2,'ttok_27f15dd16c97e0749cc3ced99897a7ad','held','authorize','tok_visa',1250,'EUR','executed',1795979463889,4102424263889,1795979463892,'txn_92a8ea474cb8e1e5dda405b41e9cecc8',2,NULL,NULL,0,1796584263892);
INSERT INTO "transactions" VALUES(3,'ttok_b8e7f5fbda5c773f2a59999de5d6e01a','declined','charge','tok_declined',1250,'EUR','declined',1795979463894,4102424263894,1795979463896,NULL,NULL,'card_declined',NULL,0,NULL);
INSERT INTO "transactions" VALUES(4,'ttok_bf9b856117c549a611f904f51f1de9bb','captured','capture','tok_visa',400,'EUR','executed',1795979463899,4102424263899,1795979463901,'txn_0aa6395138d2c088b6a14566d6dd8a74',3,NULL,'txn_92a8ea474cb8e1e5dda405b41e9cecc8',0,NULL);
INSERT INTO "transactions" VALUES(5,'ttok_240a2db4de16de46e249954fa7ebf6bd','refunded','refund','tok_visa',250,'EUR','executed',1795979463903,4102424263903,1795979463905,'txn_945ccdf626829fd3495719f84c81d28d',4,NULL,'txn_937d12ce4111fec71d8f37cdccbd87bc',0,NULL);
INSERT INTO "transactions" VALUES(6,'ttok_3a713ecc487d55c7ada90ef6d85aa384','cancelled','charge','tok_visa',1250,'EUR','cancelled',1795979463907,4102424263907,1795979463909,NULL,NULL,NULL,NULL,0,NULL);
INSERT INTO "transactions" VALUES(7,'ttok_7a00c50208529ffc11eb48331b555e0d','open','charge','tok_visa',1250,'EUR','created',1795979463911,4102424263911,NULL,NULL,NULL,NULL,NULL,0,NULL);
CREATE UNIQUE INDEX one_lives ON transactions (reference) WHERE state <> 'expired';
CREATE INDEX by_reference ON transactions (reference);
CREATE INDEX followers ON transactions (acts_on) WHERE acts_on IS NOT NULL;
COMMIT;
PRAGMA user_version = 2;
