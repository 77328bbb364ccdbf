/** The rule of the contract: when in doubt, the same request again with the same key. */
import { setTimeout as sleep } from "node:timers/promises";
import { CallError } from "./errors.js";

/** The pause before a repeat, in milliseconds, if the service names none. */
const PAUSE = 500;

/** For how long a call is repeated, in milliseconds. */
const PATIENCE = 60_000;

/**
 * Makes a call, and makes it again until its outcome is known. The call sends the same request each time.
 *
 * Rejects with the CallError that is the outcome, or with an Error if none is known in time: nothing is known then, and a later
 * repeat is as safe.
 */
export async function untilKnown<Answer>(
  call: () => Promise<Answer>,
  isPending: (answer: Answer) => boolean = () => false,
): Promise<Answer> {
  const end = performance.now() + PATIENCE;
  for (;;) {
    let pause = PAUSE;
    let cause: unknown;
    try {
      const answer = await call();
      if (!isPending(answer)) return answer;
    } catch (error) {
      if (!(error instanceof CallError && error.asksForRepeat)) throw error;
      pause = error.retryAfter ?? PAUSE;
      cause = error;
    }
    if (performance.now() + pause > end)
      throw new Error("no outcome yet: repeat it later with the same key", { cause });
    await sleep(pause);
  }
}
