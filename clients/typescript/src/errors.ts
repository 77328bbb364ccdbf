/** Errors of the service, with the details that say what to do next. */
import { status, type ServiceError } from "@grpc/grpc-js";
import { BadRequest, ErrorInfo, RetryInfo } from "./gen/grpc/google/rpc/error_details.js";
import { Status } from "./gen/grpc/google/rpc/status.js";

/** The details that an error of the service carries. gRPC's own errors, such as a lost connection, carry none. */
export interface Details {
  info?: ErrorInfo | undefined;
  badRequest?: BadRequest | undefined;
  retryInfo?: RetryInfo | undefined;
}

const ABSENT: readonly number[] = [status.NOT_FOUND];
const BUSY: readonly number[] = [status.UNAVAILABLE, status.RESOURCE_EXHAUSTED, status.INTERNAL];

/**
 * A call that ended in an error. What the service refuses, it refuses as it is, in this call: unless the advice is USE_NEW_KEY, an
 * earlier call with the key may have moved money.
 */
export class CallError extends Error {
  override readonly name = "CallError";
  /** The service's reason, such as IDEMPOTENCY_KEY_REUSED; empty if the error is gRPC's own. */
  readonly reason: string;
  /** What to do next, an `Advice` without its prefix; empty if the error is gRPC's own. */
  readonly advice: string;
  /** What else the reason tells, by name: numbers are decimal strings. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The faulty fields, by their paths in the request. */
  readonly violations: readonly string[];
  /** When a retry is of use, in milliseconds from now, if the service says. */
  readonly retryAfter: number | undefined;

  constructor(
    /** The gRPC code, one of `status`. */
    readonly code: number,
    message: string,
    { info, badRequest, retryInfo }: Details,
    cause: unknown,
  ) {
    super(message, { cause });
    const ours = info?.domain === "charging.v1" ? info : undefined;
    const delay = retryInfo?.retryDelay;
    this.reason = ours?.reason ?? "";
    this.metadata = ours?.metadata ?? {};
    this.advice = this.metadata.advice ?? "";
    this.violations = badRequest?.fieldViolations.map(({ field }) => field) ?? [];
    this.retryAfter = delay && Number(delay.seconds) * 1_000 + delay.nanos / 1_000_000;
  }

  /** The error of a call by grpc-js. */
  static of(error: ServiceError): CallError {
    return new CallError(error.code, error.message, detailsOf(error), error);
  }

  /** Whether the same request, with the same idempotency key, is to be sent again. */
  get asksForRepeat(): boolean {
    if (!this.reason) return true; // Not the service's word, so the outcome is unknown.
    switch (this.advice) {
      case "RETRY_SAME_KEY": // Of a query, NOT_FOUND gives this advice for the charge, not for the query.
        return !ABSENT.includes(this.code);
      case "USE_NEW_KEY":
      case "DO_NOT_RETRY":
        return false;
      default: // ASK_STATUS, and advice of a later contract counts as that. Only queries give it with these codes.
        return BUSY.includes(this.code);
    }
  }
}

/** The details of an error, which grpc-js hands over as the bytes of a google.rpc.Status in a trailer. */
function detailsOf(error: ServiceError): Details {
  const [bytes] = error.metadata.get("grpc-status-details-bin");
  const details = Buffer.isBuffer(bytes) ? Status.decode(bytes).details : [];
  const find = <T>(name: string, type: { decode(bytes: Uint8Array): T }): T | undefined => {
    const found = details.find(({ typeUrl }) => typeUrl.endsWith(`/google.rpc.${name}`));
    return found && type.decode(found.value);
  };
  return {
    info: find("ErrorInfo", ErrorInfo),
    badRequest: find("BadRequest", BadRequest),
    retryInfo: find("RetryInfo", RetryInfo),
  };
}
