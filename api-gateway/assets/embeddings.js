// How near texts are to each other, by the vectors that a model gives them.

import { CurlView } from "/assets/curl.js";
import { byId, el, setText } from "/assets/dom.js";
import { reasonOf, request } from "/assets/key.js";

const FIRST = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The stock market fell today."];
const FEWEST = 2;
const MOST = 12;

/** From -1 to 1; 0 where a vector has no length. */
export function cosine(a, b) {
  let [product, lengthA, lengthB] = [0, 0, 0];
  for (let index = 0; index < a.length; index += 1) {
    product += a[index] * b[index];
    lengthA += a[index] * a[index];
    lengthB += b[index] * b[index];
  }
  const lengths = Math.sqrt(lengthA) * Math.sqrt(lengthB);
  return lengths === 0 ? 0 : product / lengths;
}

export class Embeddings {
  #isEnabled = false;
  #isBusy = false;
  #curl = new CurlView("embed-curl", "embed-curl-view", () => ({ path: "/v1/embeddings", body: this.#body() }));

  constructor() {
    FIRST.forEach((text) => this.#add(text));
    byId("embed-add").addEventListener("click", () => this.#add("").focus());
    byId("embed-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    byId("embed-form").addEventListener("input", () => this.#curl.refresh());
    byId("embed-texts").addEventListener("click", (event) => {
      const item = event.target.closest("[data-remove]")?.closest("li");
      if (item) {
        const near = item.nextElementSibling ?? item.previousElementSibling;
        item.remove();
        near?.querySelector("input").focus();
        this.#number();
      }
    });
  }

  enable(isEnabled) {
    this.#isEnabled = isEnabled;
    this.#showState();
  }

  #showState() {
    byId("embed-send").disabled = !this.#isEnabled || this.#isBusy;
  }

  #add(text) {
    const input = el("input.field", { type: "text", dir: "auto", required: true });
    input.value = text;
    const remove = el("button.button.icon.small", { type: "button", "data-remove": "", text: "✕" });
    byId("embed-texts").append(el("li", {}, el("span.index.muted.number"), input, remove));
    this.#number();
    return input;
  }

  #number() {
    const items = [...byId("embed-texts").children];
    items.forEach((item, index) => {
      const [number, input, remove] = item.children;
      setText(number, index + 1);
      input.setAttribute("aria-label", `Text ${index + 1}`);
      remove.setAttribute("aria-label", `Remove text ${index + 1}`);
      remove.disabled = items.length <= FEWEST;
    });
    byId("embed-add").disabled = items.length >= MOST;
    this.#curl.refresh();
  }

  #body() {
    const input = [...byId("embed-texts").querySelectorAll("input")].map((field) => field.value);
    return { model: byId("embed-model").value, input };
  }

  async #send() {
    if (this.#isBusy || !this.#isEnabled) {
      return;
    }
    this.#isBusy = true;
    this.#showState();
    const body = this.#body();
    const begun = performance.now();
    try {
      const answer = await embed(body);
      const took = Math.round(performance.now() - begun);
      show(body.input, answer, took);
      fail(null);
    } catch (error) {
      fail(error.message);
    }
    this.#isBusy = false;
    this.#showState();
  }
}

async function embed(body) {
  const options = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const response = await request("/v1/embeddings", options);
  if (!response.ok) {
    throw new Error(await reasonOf(response));
  }
  return response.json();
}

function fail(reason) {
  byId("embed-error").hidden = reason === null;
  setText(byId("embed-error"), reason ?? "");
  byId("embed-empty").hidden = true;
  if (reason !== null) {
    byId("embed-matrix").hidden = true;
    setText(byId("embed-numbers"), "");
  }
}

function show(texts, answer, took) {
  const vectors = answer.data.toSorted((a, b) => a.index - b.index).map((item) => item.embedding);
  byId("embed-matrix").hidden = false;
  byId("embed-matrix").replaceChildren(matrix(texts, vectors));
  const tokens = answer.usage?.prompt_tokens;
  const words = [answer.model, `${vectors[0].length} dimensions`, tokens !== undefined && `${tokens} tokens`, `${took} ms`];
  setText(byId("embed-numbers"), words.filter(Boolean).join(" · "));
}

function matrix(texts, vectors) {
  const heads = texts.map((text, index) => el("th", { scope: "col", title: text, text: index + 1 }));
  const rows = vectors.map((vector, row) => {
    const cells = vectors.map((other, column) => {
      const value = cosine(vector, other);
      const cell = el("td.number", { title: `${texts[row]} – ${texts[column]}`, text: value.toFixed(2) });
      cell.style.setProperty("--heat", Math.max(0, Math.min(1, value)).toFixed(3));
      return cell;
    });
    const name = el("span.matrix-text", { dir: "auto", title: texts[row], text: texts[row] });
    return el("tr", {}, el("th", { scope: "row" }, el("span.index.muted.number", { text: row + 1 }), name), ...cells);
  });
  const head = el("tr", {}, el("th", { scope: "col", text: "Text" }), ...heads);
  return el("table", {}, el("caption.hidden-text", { text: "Cosine similarity of each pair of texts" }), el("thead", {}, head), el("tbody", {}, ...rows));
}
