/** A sandbox of this test's own: the mock bank, both servers and an empty journal. */
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/** A movement of money, as the bank has it. */
export interface Movement {
  reference: string;
  kind: string;
  minor_units: number;
}

/** Where the sandbox listens. */
interface Addresses {
  command: string;
  query: string;
  bank: string;
}

export class Sandbox {
  private constructor(
    private readonly process: ChildProcess,
    /** Where it listens: host:port, and the bank's URL. */
    readonly addresses: Addresses,
  ) {}

  /** Starts one, with options of `chargeonce sandbox`, and waits until it serves. */
  static async start(options = ""): Promise<Sandbox> {
    const here = fileURLToPath(new URL("../../../../.venv/bin/chargeonce", import.meta.url));
    const command = process.env.CHARGEONCE_SANDBOX || `${existsSync(here) ? `'${here}'` : "chargeonce"} sandbox`;
    // `exec`: the sandbox has this process as its parent, with which it ends, and no shell between them.
    const child = spawn(`exec ${command} ${options}`, { shell: true, stdio: ["ignore", "pipe", "inherit"] });
    for await (const line of createInterface({ input: child.stdout })) {
      return new Sandbox(child, JSON.parse(line) as Addresses);
    }
    throw new Error(`no sandbox: ${command}`);
  }

  /** Orders a fault of the bank: see ../../../../docs/mock-bank.md. */
  async order(fault: object): Promise<void> {
    const answer = await fetch(`${this.addresses.bank}/faults`, { method: "POST", body: JSON.stringify(fault) });
    if (!answer.ok) throw new Error(`the bank answers ${answer.status}`);
  }

  /** What the bank moved for a charge. */
  async movements(chargeId: string): Promise<Movement[]> {
    const answer = await fetch(`${this.addresses.bank}/statement`);
    const { movements } = (await answer.json()) as { movements: Movement[] };
    return movements.filter(({ reference }) => reference === chargeId);
  }

  /** Ends it, in order or by kill -9. */
  async end(signal: "SIGTERM" | "SIGKILL" = "SIGTERM"): Promise<void> {
    const ended = once(this.process, "exit");
    this.process.kill(signal);
    await ended;
  }
}
