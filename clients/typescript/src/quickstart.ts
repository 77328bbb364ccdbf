import { readFileSync } from "node:fs";
import { credentials, Metadata } from "@grpc/grpc-js";
import { ChargeRequest, CommandServiceClient } from "./gen/grpc/charging/v1/command.js";
import { ChargeStatus } from "./gen/grpc/charging/v1/common.js";

const options = { "grpc.service_config": readFileSync(new URL("../../service-config.json", import.meta.url), "utf8") };
const client = new CommandServiceClient("127.0.0.1:50051", credentials.createInsecure(), options);
const [card, amount] = [{ token: "tok_visa" }, { minorUnits: 1250n, currencyCode: "EUR" }];
const request = ChargeRequest.create({ idempotencyKey: "quickstart-typescript", userId: "alice", card, amount });
client.charge(request, new Metadata({ waitForReady: true }), { deadline: Date.now() + 15_000 }, (error, answer) => {
  if (error) throw error; // The same request, with the same key, is always safe to send again.
  console.log(ChargeStatus[answer.status], answer.transactionId);
});
