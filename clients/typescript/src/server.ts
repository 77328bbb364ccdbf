/** A server over grpc-js: calls as promises and streams as generators, each with a deadline; errors are CallErrors. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import {
  Client,
  Metadata,
  credentials,
  type ChannelCredentials,
  type MethodDefinition,
  type ServiceError,
} from "@grpc/grpc-js";
import { CallError } from "./errors.js";

/** How long a call may take, in milliseconds, unless its caller says otherwise. */
const TIMEOUT = 15_000;

const OPTIONS = {
  "grpc.service_config": readFileSync(new URL("../../service-config.json", import.meta.url), "utf8"),
  // A server that was away for long is found again within this time.
  "grpc.max_reconnect_backoff_ms": 5_000,
  // A dead link is found by a ping within this time. The server permits one every five seconds.
  "grpc.keepalive_time_ms": 30_000,
};

/** How a client shows who it is. */
export interface Identity {
  /** A folder with `ca.crt`, and with `tls.crt` and `tls.key` if the client shows a certificate. Empty: plaintext. */
  tls?: string;
  /** A file with a bearer token, for TLS only. It is read for each call, so it may be replaced. */
  tokenFile?: string;
}

/** A command or query server. Messages and methods are those that ts-proto generates. */
export class Server {
  readonly #client: Client;
  readonly #tokenFile: string;

  /** Opens a connection when it is first needed. The address is one such as 127.0.0.1:50051. Throws at a token without TLS. */
  constructor(address: string, { tls = "", tokenFile = "" }: Identity = {}) {
    if (tokenFile && !tls) throw new Error("a token is never sent without TLS");
    this.#client = new Client(address, tls ? certificatesIn(tls) : credentials.createInsecure(), OPTIONS);
    this.#tokenFile = tokenFile;
  }

  /** Makes one call. `timeout` is in milliseconds. Rejects with CallError. */
  call<Request, Answer>(
    method: MethodDefinition<Request, Answer>,
    request: Request,
    timeout = TIMEOUT,
  ): Promise<Answer> {
    return new Promise((resolve, reject) => {
      this.#client.makeUnaryRequest(
        method.path,
        method.requestSerialize,
        method.responseDeserialize,
        request,
        this.#metadata(),
        { deadline: Date.now() + timeout },
        (error, answer) => {
          if (error) reject(CallError.of(error));
          else resolve(answer as Answer); // Without an error there is an answer.
        },
      );
    });
  }

  /** Opens a stream, which ends when its reader stops reading. `timeout` is in milliseconds. Throws CallError. */
  async *stream<Request, Answer>(
    method: MethodDefinition<Request, Answer>,
    request: Request,
    timeout = TIMEOUT,
  ): AsyncGenerator<Answer, void> {
    const stream = this.#client.makeServerStreamRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      request,
      this.#metadata(),
      { deadline: Date.now() + timeout },
    );
    stream.on("error", () => undefined); // The end that `cancel` brings is no error to anybody.
    try {
      yield* stream as AsyncIterable<Answer>;
    } catch (error) {
      throw CallError.of(error as ServiceError);
    } finally {
      stream.cancel();
    }
  }

  /** Closes the connection. */
  close(): void {
    this.#client.close();
  }

  #metadata(): Metadata {
    // Said here, since grpc-js reads waitForReady in a service config but does not follow it.
    const metadata = new Metadata({ waitForReady: true });
    if (this.#tokenFile) metadata.set("authorization", `Bearer ${readFileSync(this.#tokenFile, "utf8").trim()}`);
    return metadata;
  }
}

function certificatesIn(folder: string): ChannelCredentials {
  const read = (name: string) => (existsSync(join(folder, name)) ? readFileSync(join(folder, name)) : null);
  return credentials.createSsl(readFileSync(join(folder, "ca.crt")), read("tls.key"), read("tls.crt"));
}

/** The command and the query server that the environment names: see ../../TOUR.md. */
export function serversOfEnvironment(): { commands: Server; queries: Server } {
  const setting = (name: string, standard = "") => process.env[`CHARGEONCE_${name}`] || standard;
  const identity = { tls: setting("TLS"), tokenFile: setting("TOKEN_FILE") };
  return {
    commands: new Server(setting("COMMAND", "127.0.0.1:50051"), identity),
    queries: new Server(setting("QUERY", "127.0.0.1:50052"), identity),
  };
}
