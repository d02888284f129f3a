// A conversation with a model. It lives in this page and goes to the gateway with each message.

import { numbersOf, streamAnswer } from "/assets/answer.js";
import { CurlView } from "/assets/curl.js";
import { byId, el, setText } from "/assets/dom.js";

const SPEAKERS = { user: "You", assistant: "Model" };

export class Chat {
  /** What was said, as the API takes it. */
  #messages = [];
  #abort = null;
  #isEnabled = false;
  #curl = new CurlView("chat-curl", "chat-curl-view", () => ({
    path: "/v1/chat/completions",
    body: this.#body([...this.#messages, { role: "user", content: byId("chat-input").value || "Hello!" }]),
  }));

  constructor() {
    byId("chat-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    byId("chat-input").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.#send();
      }
    });
    byId("chat-stop").addEventListener("click", () => this.#abort?.abort());
    byId("panel-chat").addEventListener("keydown", (event) => event.key === "Escape" && !event.isComposing && this.#abort?.abort());
    byId("chat-clear").addEventListener("click", () => this.#clear());
    byId("panel-chat").addEventListener("input", () => this.#changed());
    this.#changed();
  }

  enable(isEnabled) {
    this.#isEnabled = isEnabled;
    this.#showState();
  }

  #changed() {
    setText(byId("chat-temperature-value"), Number(byId("chat-temperature").value).toFixed(1));
    this.#curl.refresh();
  }

  #showState() {
    const focused = document.activeElement;
    byId("chat-send").disabled = !this.#isEnabled || this.#abort !== null;
    byId("chat-send").hidden = this.#abort !== null;
    byId("chat-stop").hidden = this.#abort === null;
    byId("chat-clear").disabled = this.#abort !== null || byId("chat-messages").childElementCount === 0;
    byId("chat-empty").hidden = byId("chat-messages").childElementCount > 0;
    this.#handOver(focused);
  }

  /** The focus goes from a button that is hidden to the one in its place; whoever types goes on typing. */
  #handOver(focused) {
    if (focused?.hidden && focused === byId("chat-send")) {
      byId("chat-stop").focus();
    } else if (focused?.hidden && focused === byId("chat-stop")) {
      byId("chat-send").focus();
    }
  }

  /** The request. What is left empty is left out, so that the model's own default holds. */
  #body(messages) {
    const system = byId("chat-system").value.trim();
    const most = Number.parseInt(byId("chat-tokens").value, 10);
    return {
      model: byId("chat-model").value,
      messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
      temperature: Number(byId("chat-temperature").value),
      ...(Number.isNaN(most) ? {} : { max_tokens: most }),
      stream: true,
      stream_options: { include_usage: true },
    };
  }

  #clear() {
    this.#messages = [];
    byId("chat-messages").replaceChildren();
    this.#showState();
    byId("chat-input").focus();
  }

  async #send() {
    const input = byId("chat-input");
    const content = input.value.trim();
    if (!content || this.#abort || !this.#isEnabled) {
      return;
    }
    const asked = { role: "user", content };
    const body = this.#body([...this.#messages, asked]);
    addMessage("user", content);
    input.value = "";
    const shown = addMessage("assistant", "", body.model);
    this.#abort = new AbortController();
    this.#showState();
    toTheEnd();
    const answer = await this.#answer(body, shown);
    this.#abort = null;
    shown.node.removeAttribute("data-busy");
    // A question that came to nothing is not asked again with the next one.
    if (answer) {
      this.#messages.push(asked, { role: "assistant", content: answer });
    }
    this.#showState();
    this.#curl.refresh();
  }

  /** The text of the answer, as far as it came; empty where there is none. */
  async #answer(body, shown) {
    let text = "";
    const onText = (piece) => {
      text += piece;
      following(() => shown.text.append(piece));
    };
    try {
      const numbers = numbersOf(await streamAnswer(body, this.#abort.signal, onText));
      following(() => setText(shown.numbers, numbers));
      setText(byId("chat-said"), `${text} (${numbers})`);
    } catch (error) {
      following(() => this.#showFailure(error, shown));
    }
    return text;
  }

  #showFailure(error, shown) {
    if (this.#abort.signal.aborted) {
      setText(shown.numbers, "stopped");
      setText(byId("chat-said"), "The answer was stopped.");
    } else {
      shown.node.dataset.failed = true;
      setText(shown.error, error.message);
      setText(byId("chat-said"), `It failed: ${error.message}`);
    }
  }
}

function addMessage(role, content, model) {
  const text = el("p.message-text", { dir: "auto", text: content });
  const numbers = el("p.numbers.muted.number");
  const error = el("p.error");
  const speaker = el("p.message-who.muted", { text: model ?? SPEAKERS[role] });
  const node = el("li.message", { "data-role": role, "data-busy": role === "assistant" }, speaker, text, error, numbers);
  byId("chat-messages").append(node);
  return { node, text, numbers, error };
}

function toTheEnd() {
  const list = byId("chat-messages");
  list.scrollTop = list.scrollHeight;
}

/** So far from the end, in pixels, somebody still reads along: less than two lines. */
const NEAR = 40;

/** Does what makes the conversation longer, and scrolls along, unless the reader has gone back. */
function following(grow) {
  const list = byId("chat-messages");
  const wasAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < NEAR;
  grow();
  if (wasAtEnd) {
    toTheEnd();
  }
}
