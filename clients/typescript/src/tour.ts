/** The tour that every client takes: see ../../TOUR.md. It prints one line of JSON for each step. */
import { CallError } from "./errors.js";
import {
  CaptureMode,
  CaptureRequest,
  ChargeRequest,
  ChargeResponse,
  CommandServiceService as Command,
  OutcomeSource,
  RefundRequest,
  VoidRequest,
  type OperationOutcome,
} from "./gen/grpc/charging/v1/command.js";
import { ChargeStatus, DeclineReason, OperationStatus, type Card, type Money } from "./gen/grpc/charging/v1/common.js";
import {
  GetChargeHistoryRequest,
  GetChargeRequest,
  GetUserSummaryRequest,
  ListChargesRequest,
  QueryServiceService as Query,
  WatchChargeRequest,
  type Charge,
} from "./gen/grpc/charging/v1/query.js";
import { untilKnown } from "./repeat.js";
import { serversOfEnvironment } from "./server.js";

/** A deadline, in milliseconds, that passes before the slow card's bank answers. */
const SHORT = 300;

const { commands, queries } = serversOfEnvironment();

// Requests

const card = (token: string): Card => ({ token, brand: "visa", last4: "4242", fingerprint: "" });

const euros = (minorUnits: bigint): Money => ({ minorUnits, currencyCode: "EUR" });

const order = (idempotencyKey: string, differing: Partial<ChargeRequest> = {}): ChargeRequest =>
  ChargeRequest.create({ idempotencyKey, userId: "tour", card: card("tok_visa"), amount: euros(1250n), ...differing });

// Calls, each repeated until its outcome is known

const charge = (request: ChargeRequest): Promise<ChargeResponse> =>
  untilKnown(
    () => commands.call(Command.charge, request),
    ({ status }) => status === ChargeStatus.CHARGE_STATUS_PENDING,
  );

const operation = async (
  call: () => Promise<{ outcome?: OperationOutcome | undefined }>,
): Promise<OperationOutcome> => {
  const isPending = ({ outcome }: { outcome?: OperationOutcome | undefined }) =>
    outcome?.status === OperationStatus.OPERATION_STATUS_PENDING;
  return given((await untilKnown(call, isPending)).outcome);
};

const capture = (request: CaptureRequest) => operation(() => commands.call(Command.capture, request));

const voidRest = (request: VoidRequest) => operation(() => commands.call(Command.void, request));

const refund = (request: RefundRequest) => operation(() => commands.call(Command.refund, request));

const getCharge = async (request: GetChargeRequest): Promise<{ charge: Charge; asOfPosition: bigint }> => {
  const { charge, asOfPosition } = await untilKnown(() => queries.call(Query.getCharge, request));
  return { charge: given(charge), asOfPosition };
};

/** The statuses of a charge from now until it is decided. */
async function watch(request: WatchChargeRequest): Promise<ChargeStatus[]> {
  const seen: ChargeStatus[] = [];
  await untilKnown(
    async () => {
      for await (const { charge } of queries.stream(Query.watchCharge, request)) {
        const { status } = given(charge);
        seen.push(status);
        if (status !== ChargeStatus.CHARGE_STATUS_PENDING) return true;
      }
      return false;
    },
    (isDecided) => !isDecided,
  );
  return seen;
}

/** The error that a call must end in. */
async function errorOf(call: Promise<unknown>): Promise<CallError> {
  const outcome = await call.catch((error: unknown) => error);
  if (outcome instanceof CallError) return outcome;
  throw new Error("this call must be refused", { cause: outcome });
}

function given<T>(value: T | undefined): T {
  if (value === undefined) throw new Error("the server left out a message that the contract promises");
  return value;
}

// What is printed

/** The name of an enum's value; the number of one that this contract does not know. */
const name = (type: Record<number, string>, value: number | undefined): string | number | undefined =>
  value === undefined ? undefined : (type[value] ?? value);

const show = (step: string, members: object): void => {
  console.log(JSON.stringify({ step, ...members }));
};

const showOperation = (step: string, { status, amount }: OperationOutcome): void => {
  show(step, { status: name(OperationStatus, status), minor_units: String(amount?.minorUnits) });
};

// The steps

async function commandsOfOneCharge(): Promise<ChargeResponse> {
  const first = order("tour-1", { description: "one umbrella", metadata: { order: "1001" } });
  const charged = await charge(first);
  const outcome = ({ chargeId, status, outcomeSource }: ChargeResponse) => ({
    charge_id: chargeId,
    status: name(ChargeStatus, status),
    outcome_source: name(OutcomeSource, outcomeSource),
  });
  show("charge", outcome(charged));

  const again = await charge(first);
  show("same key", { ...outcome(again), same_transaction: again.transactionId === charged.transactionId });

  const other = await errorOf(charge({ ...first, amount: euros(1300n) }));
  const { code, reason, advice, metadata } = other;
  show("another amount", { code, reason, advice, status: metadata.status });
  return charged;
}

async function refusals(): Promise<void> {
  const invalid = await errorOf(charge(order("tour-invalid", { userId: "", amount: euros(0n) })));
  show("invalid", {
    code: invalid.code,
    reason: invalid.reason,
    advice: invalid.advice,
    violations: invalid.violations.toSorted(),
  });

  const declined = await charge(order("tour-2", { card: card("tok_declined") }));
  show("decline", {
    status: name(ChargeStatus, declined.status),
    decline_reason: name(DeclineReason, declined.declineReason),
  });

  const { code, reason, advice } = await errorOf(charge(order("tour-2")));
  show("new key", { code, reason, advice });
}

async function deadline(): Promise<void> {
  const slow = order("tour-3", { card: card("tok_slow") });
  const decided = await commands.call(Command.charge, slow, SHORT).then(
    ({ status }) => status !== ChargeStatus.CHARGE_STATUS_PENDING,
    () => false,
  );
  show("deadline", { decided });

  const { chargeId, status } = await charge(slow);
  show("after the deadline", { charge_id: chargeId, status: name(ChargeStatus, status) });
}

async function reads({ position, journalId }: ChargeResponse): Promise<void> {
  const own = await getCharge(GetChargeRequest.create({ idempotencyKey: "tour-1", minPosition: position, journalId }));
  const { status, amount, description, metadata } = own.charge;
  show("own write", {
    status: name(ChargeStatus, status),
    amount: { minor_units: String(amount?.minorUnits), currency_code: amount?.currencyCode },
    description,
    metadata,
    is_shown: own.asOfPosition >= position,
  });

  const large = await charge(order("tour-4", { amount: { minorUnits: 999_999_999_999n, currencyCode: "IDR" } }));
  const found = await getCharge(
    GetChargeRequest.create({ idempotencyKey: "tour-4", minPosition: large.position, journalId: large.journalId }),
  );
  show("large amount", { minor_units: String(found.charge.amount?.minorUnits) });

  const unknown = ChargeResponse.decode(Buffer.from("1063288180808080808010c23e0178", "hex"));
  show("unknown values", { status: name(ChargeStatus, unknown.status), position: String(unknown.position) });
}

async function operations(): Promise<OperationOutcome> {
  const { chargeId, status } = await charge(
    order("tour-5", { amount: euros(5000n), capture: CaptureMode.CAPTURE_MODE_MANUAL }),
  );
  show("hold", { status: name(ChargeStatus, status) });

  const part = CaptureRequest.create({ idempotencyKey: "tour-capture", chargeId, amount: euros(3000n) });
  showOperation("capture", await capture(part));
  showOperation("void", await voidRest(VoidRequest.create({ idempotencyKey: "tour-void", chargeId })));
  const back = RefundRequest.create({
    idempotencyKey: "tour-refund",
    chargeId,
    amount: euros(1000n),
    reason: "one of three",
  });
  const refunded = await refund(back);
  showOperation("refund", refunded);

  const excess = RefundRequest.create({ idempotencyKey: "tour-too-much", chargeId, amount: euros(2001n) });
  const { code, reason, advice, metadata } = await errorOf(refund(excess));
  show("too much", { code, reason, advice, left: metadata.left });
  return refunded;
}

async function customer(): Promise<void> {
  const { chargeId, status, action } = await charge(order("tour-6", { card: card("tok_3ds") }));
  show("customer", { status: name(ChargeStatus, status), has_url: Boolean(action?.url) });

  const calledOff = await voidRest(VoidRequest.create({ idempotencyKey: "tour-left", chargeId }));
  show("call off", { status: name(OperationStatus, calledOff.status) });
}

async function watching(): Promise<void> {
  const slow = order("tour-7", { card: card("tok_slow") });
  const { chargeId, position, journalId } = await untilKnown(() => commands.call(Command.charge, slow, SHORT));
  const seen = await watch(WatchChargeRequest.create({ chargeId, minPosition: position, journalId }));
  show("watch", { first: name(ChargeStatus, seen.at(0)), last: name(ChargeStatus, seen.at(-1)) });
}

async function pages(): Promise<void> {
  let position = 0n;
  let journalId = "";
  for (const number of [1, 2, 3, 4, 5]) {
    ({ position, journalId } = await charge(order(`tour-page-${number}`, { userId: "tour-pages" })));
  }

  const pages: string[][] = [];
  let pageToken = "";
  do {
    const request = ListChargesRequest.create({
      userId: "tour-pages",
      pageSize: 2,
      pageToken,
      minPosition: position,
      journalId,
    });
    const page = await untilKnown(() => queries.call(Query.listCharges, request));
    pages.push(page.charges.map(({ idempotencyKey }) => idempotencyKey));
    pageToken = page.nextPageToken;
  } while (pageToken);
  show("pages", { pages });
}

async function sums({ position, journalId }: OperationOutcome): Promise<void> {
  const history = await untilKnown(() =>
    queries.call(Query.getChargeHistory, GetChargeHistoryRequest.create({ idempotencyKey: "tour-1" })),
  );
  show("history", { events: history.entries.map(({ event }) => event) });

  const request = GetUserSummaryRequest.create({ userId: "tour", minPosition: position, journalId });
  const summary = await untilKnown(() => queries.call(Query.getUserSummary, request));
  const currencies = Object.fromEntries(
    summary.currencies.map((sums) => [
      sums.currencyCode,
      {
        charged: String(sums.chargedMinorUnits),
        refunded: String(sums.refundedMinorUnits),
        net: String(sums.netMinorUnits),
        held: String(sums.heldMinorUnits),
        declined: String(sums.declinedMinorUnits),
      },
    ]),
  );
  show("summary", { currencies });
}

try {
  const charged = await commandsOfOneCharge();
  await refusals();
  await deadline();
  await reads(charged);
  const refunded = await operations();
  await customer();
  await watching();
  await pages();
  await sums(refunded);
} catch (error) {
  console.error(error instanceof Error ? `the tour ends: ${error.message}` : error);
  process.exitCode = 1;
} finally {
  commands.close();
  queries.close();
}
