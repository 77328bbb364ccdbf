import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { credentials, Metadata, status, type ServiceError } from "@grpc/grpc-js";
import { CallError } from "../errors.js";
import {
  ChargeRequest,
  ChargeResponse,
  CommandServiceService as Command,
  RefundRequest,
} from "../gen/grpc/charging/v1/command.js";
import { ChargeStatus, OperationStatus, type Money } from "../gen/grpc/charging/v1/common.js";
import {
  GetChargeRequest,
  QueryServiceClient,
  QueryServiceService as Query,
  WatchChargeRequest,
} from "../gen/grpc/charging/v1/query.js";
import { untilKnown } from "../repeat.js";
import { Server } from "../server.js";
import { Sandbox } from "./sandbox.js";

let sandbox: Sandbox;
let commands: Server;
let queries: Server;

/** What a call ends in that finds no server. It takes longer than the five attempts of the service config. */
let unanswered: Promise<CallError>;

before(async () => {
  sandbox = await Sandbox.start();
  commands = new Server(sandbox.addresses.command);
  queries = new Server(sandbox.addresses.query);
  unanswered = errorOf(new Server("127.0.0.1:9").call(Command.charge, order("unanswered"), 9_000));
});

after(async () => {
  commands.close();
  queries.close();
  await sandbox.end();
});

const euros = (minorUnits: bigint): Money => ({ minorUnits, currencyCode: "EUR" });

const order = (idempotencyKey: string, token = "tok_visa", amount = euros(1250n)): ChargeRequest =>
  ChargeRequest.create({ idempotencyKey, userId: "alice", card: { token }, amount });

const charge = (request: ChargeRequest, server = commands): Promise<ChargeResponse> =>
  untilKnown(
    () => server.call(Command.charge, request),
    (answer) => answer.status === ChargeStatus.CHARGE_STATUS_PENDING,
  );

/** Begins a charge that the bank takes its time for: the answer is PENDING. */
const begin = async (idempotencyKey: string, server = commands): Promise<ChargeResponse> => {
  const answer = await untilKnown(() => server.call(Command.charge, order(idempotencyKey, "tok_slow"), 1_000));
  assert.equal(answer.status, ChargeStatus.CHARGE_STATUS_PENDING);
  return answer;
};

const errorOf = async (call: Promise<unknown>): Promise<CallError> => {
  const outcome = await call.catch((error: unknown) => error);
  assert(outcome instanceof CallError);
  return outcome;
};

test("the same request again moves money once", async () => {
  const first = await charge(order("once"));
  const again = await charge(order("once"));
  assert.equal(first.status, ChargeStatus.CHARGE_STATUS_CHARGED);
  assert.equal(again.transactionId, first.transactionId);
  const movements = await sandbox.movements(first.chargeId);
  assert.deepEqual(
    movements.map(({ kind, minor_units }) => [kind, minor_units]),
    [["charge", 1250]],
  );
});

test("after a deadline that passed, the same request brings the outcome", async () => {
  const slow = order("slow", "tok_slow");
  const early = await commands.call(Command.charge, slow, 300).catch((error: unknown) => error);
  assert(early instanceof CallError || (early as ChargeResponse).status === ChargeStatus.CHARGE_STATUS_PENDING);
  const { chargeId, status } = await charge(slow);
  assert.equal(status, ChargeStatus.CHARGE_STATUS_CHARGED);
  assert.equal((await sandbox.movements(chargeId)).length, 1);
});

test("a charge that is PENDING is asked for again", async () => {
  const seen = new Set<ChargeStatus>();
  await untilKnown(
    () => commands.call(Command.charge, order("pending", "tok_slow"), 500),
    ({ status }) => {
      seen.add(status);
      return status === ChargeStatus.CHARGE_STATUS_PENDING;
    },
  );
  assert.deepEqual([...seen], [ChargeStatus.CHARGE_STATUS_PENDING, ChargeStatus.CHARGE_STATUS_CHARGED]);
});

test("an operation that is PENDING is asked for again", async () => {
  const { chargeId } = await charge(order("given-back"));
  const request = RefundRequest.create({ idempotencyKey: "back", chargeId });
  await sandbox.order({ on: "execute", fault: "delay", seconds: 2 });
  const seen = new Set<OperationStatus | undefined>();
  await untilKnown(
    () => commands.call(Command.refund, request, 500),
    ({ outcome }) => {
      seen.add(outcome?.status);
      return outcome?.status === OperationStatus.OPERATION_STATUS_PENDING;
    },
  );
  assert.deepEqual([...seen], [OperationStatus.OPERATION_STATUS_PENDING, OperationStatus.OPERATION_STATUS_EXECUTED]);
});

test("the advice tells which errors ask for a repeat", () => {
  const cases: [code: status, advice: string, asksForRepeat: boolean, domain?: string][] = [
    [status.UNAVAILABLE, "RETRY_SAME_KEY", true],
    [status.UNAVAILABLE, "ASK_STATUS", true],
    [status.RESOURCE_EXHAUSTED, "ASK_STATUS", true],
    [status.INTERNAL, "ASK_STATUS", true],
    [status.ALREADY_EXISTS, "ASK_STATUS", false],
    [status.ALREADY_EXISTS, "USE_NEW_KEY", false],
    [status.UNAVAILABLE, "DO_NOT_RETRY", false],
    [status.UNAVAILABLE, "WAIT_FOR_THE_MOON", true], // advice of a later contract
    [status.ALREADY_EXISTS, "WAIT_FOR_THE_MOON", false],
    [status.ALREADY_EXISTS, "", false],
    [status.PERMISSION_DENIED, "DO_NOT_RETRY", true, "proxy.example"],
  ];
  for (const [code, advice, asksForRepeat, domain = "charging.v1"] of cases) {
    const error = new CallError(code, "", { info: { domain, reason: "MOON", metadata: { advice } } }, undefined);
    assert.equal(error.asksForRepeat, asksForRepeat, `${status[code]} ${advice}`);
  }
});

test("a token is never sent without TLS", () => {
  assert.throws(() => new Server(sandbox.addresses.command, { tokenFile: "token" }), /TLS/);
});

test("an error says its reason, the advice and what belongs to it", async () => {
  await charge(order("reused"));
  const { code, reason, advice, metadata, asksForRepeat } = await errorOf(
    charge(order("reused", "tok_visa", euros(1300n))),
  );
  assert.deepEqual(
    { code, reason, advice, status: metadata.status, asksForRepeat },
    {
      code: status.ALREADY_EXISTS,
      reason: "IDEMPOTENCY_KEY_REUSED",
      advice: "ASK_STATUS",
      status: "CHARGED",
      asksForRepeat: false,
    },
  );
});

test("an invalid request names its faulty fields", async () => {
  const { code, violations } = await errorOf(charge({ ...order("invalid", "tok_visa", euros(0n)), userId: "" }));
  assert.equal(code, status.INVALID_ARGUMENT);
  assert.deepEqual(violations.toSorted(), ["amount.minor_units", "user_id"]);
});

test("a view that is behind says when to ask again", async () => {
  const { position } = await charge(order("ahead"));
  const request = GetChargeRequest.create({ idempotencyKey: "ahead", minPosition: position + 1_000_000n });
  // Without the service config, whose retries would go on until the deadline.
  const client = new QueryServiceClient(sandbox.addresses.query, credentials.createInsecure());
  const error = await new Promise<ServiceError | null>((resolve) => {
    client.getCharge(request, new Metadata(), { deadline: Date.now() + 1_000 }, resolve);
  });
  client.close();
  assert(error);
  const { reason, retryAfter, asksForRepeat } = CallError.of(error);
  assert.equal(reason, "VIEW_BEHIND");
  assert(retryAfter !== undefined && retryAfter > 0);
  assert(asksForRepeat);
});

test("a charge that the view does not show is not asked for again", async () => {
  const request = GetChargeRequest.create({ idempotencyKey: "never" });
  const { code, asksForRepeat } = await errorOf(untilKnown(() => queries.call(Query.getCharge, request)));
  assert.equal(code, status.NOT_FOUND);
  assert(!asksForRepeat);
});

test("amounts are whole and exact, and no number of JavaScript's", async () => {
  const amount = { minorUnits: 999_999_999_999n, currencyCode: "IDR" };
  const { position, journalId } = await charge(order("large", "tok_visa", amount));
  const request = GetChargeRequest.create({ idempotencyKey: "large", minPosition: position, journalId });
  const { charge: found } = await untilKnown(() => queries.call(Query.getCharge, request));
  assert.deepEqual(found?.amount, amount);
  assert.throws(() => ChargeRequest.create({ amount: { minorUnits: 12.5 } }), RangeError);
});

test("a value of a later contract is kept as it came", () => {
  const bytes = Buffer.from("1063288180808080808010c23e0178", "hex");
  const answer = ChargeResponse.decode(bytes);
  assert.equal(answer.status, 99);
  assert.equal(answer.position, 9_007_199_254_740_993n);
});

test("a watch shows each status until its reader stops", async () => {
  const { chargeId, position, journalId } = await begin("watched");
  const seen: ChargeStatus[] = [];
  const watched = WatchChargeRequest.create({ chargeId, minPosition: position, journalId });
  for await (const { charge } of queries.stream(Query.watchCharge, watched)) {
    assert(charge);
    seen.push(charge.status);
    if (charge.status !== ChargeStatus.CHARGE_STATUS_PENDING) break;
  }
  assert.equal(seen.at(0), ChargeStatus.CHARGE_STATUS_PENDING);
  assert.equal(seen.at(-1), ChargeStatus.CHARGE_STATUS_CHARGED);
});

test("a charge outlives the servers, and a call waits for them", async () => {
  const folder = await mkdtemp(join(tmpdir(), "chargeonce-"));
  const kept = `--folder '${folder}'`;
  let town = await Sandbox.start(kept);
  const server = new Server(town.addresses.command);
  try {
    await begin("under-way", server);
    const underWay = charge(order("under-way", "tok_slow"), server);
    await town.end("SIGKILL");
    const meanwhile = server.call(Command.charge, order("meanwhile"), 60_000);
    town = await Sandbox.start(kept);
    for (const { status, chargeId } of await Promise.all([underWay, meanwhile])) {
      assert.equal(status, ChargeStatus.CHARGE_STATUS_CHARGED);
      assert.equal((await town.movements(chargeId)).length, 1);
    }
  } finally {
    server.close();
    await town.end();
    await rm(folder, { recursive: true });
  }
});

test("a call that finds no server waits for its deadline, and its error asks for a repeat", async () => {
  const { code, reason, advice, asksForRepeat } = await unanswered;
  assert.deepEqual([code, reason, advice, asksForRepeat], [status.DEADLINE_EXCEEDED, "", "", true]);
});

test("Connect charges, and has the details of errors", async () => {
  const program = fileURLToPath(new URL("../connect.js", import.meta.url));
  const env = { ...process.env, CHARGEONCE_COMMAND: sandbox.addresses.command };
  const { stdout } = await promisify(execFile)(process.execPath, [program], { env });
  assert.match(stdout, /^CHARGED txn_\w+\n6 IDEMPOTENCY_KEY_REUSED ASK_STATUS CHARGED\n$/);
});

test("the README shows the example as it stands", async () => {
  const read = (path: string) => readFile(new URL(`../../${path}`, import.meta.url), "utf8");
  assert((await read("README.md")).includes(`\`\`\`ts\n${await read("src/tests/example.test.ts")}\`\`\``));
});
