/** A charge over Connect, and the same key with another amount. Connect knows no service config, so the rule does it all. */
import { ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { CallError } from "./errors.js";
import { CommandService, type ChargeRequestSchema, type ChargeResponse } from "./gen/connect/charging/v1/command_pb.js";
import { ChargeStatus } from "./gen/connect/charging/v1/common_pb.js";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/connect/google/rpc/error_details_pb.js";
import { untilKnown } from "./repeat.js";

const address = process.env.CHARGEONCE_COMMAND || "127.0.0.1:50051";
const commands = createClient(CommandService, createGrpcTransport({ baseUrl: `http://${address}` }));

const charge = (request: MessageInitShape<typeof ChargeRequestSchema>): Promise<ChargeResponse> =>
  untilKnown(
    () => commands.charge(request, { timeoutMs: 15_000 }).catch(refuse),
    ({ status }) => status === ChargeStatus.PENDING,
  );

function refuse(cause: unknown): never {
  const error = ConnectError.from(cause);
  const [info] = error.findDetails(ErrorInfoSchema);
  const [badRequest] = error.findDetails(BadRequestSchema);
  const [retryInfo] = error.findDetails(RetryInfoSchema);
  throw new CallError(error.code, error.message, { info, badRequest, retryInfo }, error);
}

const request = {
  idempotencyKey: "connect-1",
  userId: "alice",
  card: { token: "tok_visa" },
  amount: { minorUnits: 1250n, currencyCode: "EUR" },
};
const { status, transactionId } = await charge(request);
console.log(ChargeStatus[status], transactionId);
try {
  await charge({ ...request, amount: { minorUnits: 1300n, currencyCode: "EUR" } });
} catch (error) {
  if (!(error instanceof CallError)) throw error;
  console.log(error.code, error.reason, error.advice, error.metadata.status);
}
