// One answer of a model as it comes in.

import { reasonOf, request } from "/assets/key.js";
import { readEvents } from "/assets/sse.js";

const DONE = "[DONE]";
/** The gateway says something each fifteen seconds, however long the model thinks. */
const SILENCE = 35_000;

/**
 * Streams an answer.
 * @param {(text: string) => void} onText called for each piece
 * @returns {Promise<{ttft: ?number, took: number, tokens: ?number, reason: ?string}>} times in milliseconds
 * @throws with what the API says is wrong, before the answer or in the midst of it
 */
export async function streamAnswer(body, signal, onText) {
  const begun = performance.now();
  const seen = { ttft: null, took: 0, tokens: null, reason: null };
  let failure = null;
  let isDone = false;
  const options = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal };
  const response = await request("/v1/chat/completions", options);
  if (!response.ok) {
    throw new Error(await reasonOf(response));
  }
  await readEvents(response, (_, data) => {
    if (data === DONE) {
      isDone = true;
      return;
    }
    const chunk = JSON.parse(data);
    failure ??= chunk.error?.message ?? null;
    const choice = chunk.choices?.[0];
    const text = choice?.delta?.content ?? "";
    if (text) {
      seen.ttft ??= performance.now() - begun;
      onText(text);
    }
    seen.reason = choice?.finish_reason ?? seen.reason;
    seen.tokens = chunk.usage?.completion_tokens ?? seen.tokens;
  }, SILENCE);
  if (failure ?? !isDone) {
    throw new Error(failure ?? "the answer broke off");
  }
  seen.took = performance.now() - begun;
  return seen;
}

const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`);

/** What an answer's numbers are, in words. */
export function numbersOf({ ttft, took, tokens, reason }) {
  const words = [];
  if (ttft !== null) {
    words.push(`first token after ${seconds(ttft)}`);
  }
  if (tokens !== null) {
    words.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
  }
  if (ttft !== null && tokens > 1 && took > ttft) {
    const rate = (tokens - 1) / ((took - ttft) / 1000);
    words.push(`${rate.toFixed(rate < 100 ? 1 : 0)} tokens/s`);
  }
  if (reason === "length") {
    words.push("cut off at the limit of tokens");
  }
  return words.join(" · ");
}
