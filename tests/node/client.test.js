// OpenAI's own client for Node against `muster up`: what a program gets that was written for OpenAI's API.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { after, before, test } from "node:test";

import OpenAI from "openai";

const CHAT = "muster-demo-chat";
const EMBEDDING = "muster-demo-embedding";
const FRANCE = "What is the capital of France?";
const QUESTION = { model: CHAT, temperature: 0, messages: [{ role: "user", content: FRANCE }] };
const ANSWER = "The capital of France is Paris.";
const STORY = { model: CHAT, messages: [{ role: "user", content: "Tell me a story about a fox." }] };

let muster, url, client;

before(async () => {
  muster = spawn(process.env.MUSTER_BINARY, ["up", "--port", "0"], { stdio: ["ignore", "pipe", "ignore"] });
  url = await new Promise((resolve, reject) => {
    let printed = "";
    muster.on("exit", (code) => reject(new Error(`muster ended with ${code} and printed: ${printed}`)));
    muster.stdout.on("data", (piece) => {
      printed += piece;
      const address = printed.match(/http:\/\/127\.0\.0\.1:\d+/);
      if (address) resolve(address[0]);
    });
  });
  client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0, timeout: 60_000 });
});

after(() => muster.kill());

async function metric(name) {
  const lines = (await (await fetch(`${url}/metrics`)).text()).split("\n");
  return lines.filter((line) => line.startsWith(name)).reduce((sum, line) => sum + Number(line.split(" ").pop()), 0);
}

async function eventually(what, holds) {
  const deadline = Date.now() + 60_000;
  while (!(await holds())) {
    assert.ok(Date.now() < deadline, `never happened: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

test("a chat is answered", async () => {
  const { data, request_id } = await client.chat.completions.create(QUESTION).withResponse();
  assert.equal(data.choices[0].message.content, ANSWER);
  assert.equal(data.choices[0].finish_reason, "stop");
  assert.equal(data.usage.total_tokens, data.usage.prompt_tokens + data.usage.completion_tokens);
  assert.ok(request_id);
});

test("a stream says the same, with usage at its end", async () => {
  let [text, usage, pieces] = ["", null, 0];
  const body = { ...QUESTION, stream: true, stream_options: { include_usage: true } };
  const stream = await client.chat.completions.create(body);
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
    pieces += 1;
  }
  assert.equal(text, ANSWER);
  assert.ok(pieces > 5 && usage.completion_tokens > 5);
});

test("the client's own helper reads a stream", async () => {
  const stream = client.chat.completions.stream(QUESTION);
  assert.equal(await stream.finalContent(), ANSWER);
});

test("a text is completed", async () => {
  const prompt = `<|im_start|>user\n${FRANCE}<|im_end|>\n<|im_start|>assistant\n`;
  const body = { model: CHAT, temperature: 0, max_tokens: 40, prompt: [prompt, prompt] };
  const completion = await client.completions.create(body);
  assert.deepEqual(completion.choices.map((choice) => choice.text), [ANSWER, ANSWER]);
});

test("texts are embedded, by numbers and by the client's base64", async () => {
  const input = ["a cat sits on the mat", "a kitten rests on a rug"];
  const packed = await client.embeddings.create({ model: EMBEDDING, input }); // the client asks for base64 by itself
  const plain = await client.embeddings.create({ model: EMBEDDING, input, encoding_format: "float" });
  for (const [index, { embedding }] of packed.data.entries()) {
    assert.equal(embedding.length, 128);
    assert.deepEqual(embedding.map(Math.fround), plain.data[index].embedding.map(Math.fround));
  }
});

test("models are listed", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.deepEqual(names, [CHAT, EMBEDDING]);
});

test("errors are the client's own", async () => {
  await assert.rejects(client.chat.completions.create({ ...QUESTION, model: "nobody" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    return error.code === "model_not_found" && error.type === "invalid_request_error";
  });
  await assert.rejects(client.chat.completions.create({ ...QUESTION, temperature: 9, stream: true }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    return error.param === "temperature" && Boolean(error.requestID);
  });
  const long = { ...QUESTION, messages: [{ role: "user", content: "word ".repeat(3000) }] };
  await assert.rejects(client.chat.completions.create(long), { status: 400, code: "context_length_exceeded" });
});

test("a stream that is left ends at the worker", async () => {
  const stream = await client.chat.completions.create({ ...STORY, max_tokens: 1900, ignore_eos: true, stream: true });
  for await (const chunk of stream) {
    assert.ok(chunk.id);
    break; // which aborts it
  }
  await eventually("nothing runs", async () => (await metric("muster_worker_sequences_running")) === 0);
  await eventually("no ticket is left", async () => (await metric("muster_controller_tickets")) === 0);
});

test("a whole answer that is aborted ends at the worker", async () => {
  const controller = new AbortController();
  const body = { ...STORY, max_tokens: 1900, ignore_eos: true, n: 8 };
  const asked = client.chat.completions.create(body, { signal: controller.signal });
  const refused = assert.rejects(asked, OpenAI.APIUserAbortError);
  await eventually("it runs", async () => (await metric("muster_worker_sequences_running")) > 0);
  controller.abort();
  await refused;
  await eventually("nothing runs", async () => (await metric("muster_worker_sequences_running")) === 0);
});
