"""The promises of a bank as a suite that runs against any adapter: the sandbox of a bank, a double of it, or a mock.

A *subject* says how to reach a bank and which test cards it has. A *check* holds it to one promise of `command_service.bank`,
for each kind of operation that the promise is about. It ends as kept, as broken, with the answers that were seen, or as
not possible to try, with the reason.

    subject     what is tried
    checks      what a check is, and how it ends
    throwing    a transport that throws answers away
    trial       one kind of operation at the subject: the steps, put patiently, by several adapters
    steps       promises 1 and 2: what is repeated is done once
    fields      promise 4: another operation under a known reference or token
    ends        promises 3, 5, 6 and 7: what is closed stays closed
    books       promise 8: the bank's own count
    looks       promise 9: a look-up is a question only
    suite       all checks, one after another
    page        what was found, as lines for people

It moves the money that it is tried with: it is for banks that are there to be tried.
"""
