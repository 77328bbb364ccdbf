import assert from "node:assert/strict";
import { test } from "node:test";
import { ChargeRequest, CommandServiceService } from "../gen/grpc/charging/v1/command.js";
import { ChargeStatus } from "../gen/grpc/charging/v1/common.js";
import { untilKnown } from "../repeat.js";
import { Server } from "../server.js";
import { Sandbox } from "./sandbox.js";

test("an order is paid", async (t) => {
  const sandbox = await Sandbox.start();
  const commands = new Server(sandbox.addresses.command);
  t.after(async () => {
    commands.close();
    await sandbox.end();
  });

  const request = ChargeRequest.create({
    idempotencyKey: "order-1001",
    userId: "alice",
    card: { token: "tok_visa" },
    amount: { minorUnits: 1250n, currencyCode: "EUR" },
  });
  const answer = await untilKnown(
    () => commands.call(CommandServiceService.charge, request),
    ({ status }) => status === ChargeStatus.CHARGE_STATUS_PENDING,
  );

  assert.equal(answer.status, ChargeStatus.CHARGE_STATUS_CHARGED);
});
