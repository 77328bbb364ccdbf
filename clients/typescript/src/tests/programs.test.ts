import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { Sandbox } from "./sandbox.js";

let sandbox: Sandbox;

before(async () => {
  sandbox = await Sandbox.start();
});

after(async () => {
  await sandbox.end();
});

/** The lines that a program prints. */
async function linesOf(program: string): Promise<string[]> {
  const { command, query } = sandbox.addresses;
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [fileURLToPath(new URL(`../${program}.js`, import.meta.url))],
    { env: { ...process.env, CHARGEONCE_COMMAND: command, CHARGEONCE_QUERY: query } },
  );
  return stdout.trimEnd().split("\n");
}

test("Connect charges, and has the details of errors", async () => {
  const [first, second] = await Promise.all([linesOf("connect"), linesOf("connect")]);
  assert.deepEqual(first, second);
  assert.match(first[0] ?? "", /^CHARGED txn_/);
  assert.equal(first[1], "6 IDEMPOTENCY_KEY_REUSED ASK_STATUS CHARGED");
});
