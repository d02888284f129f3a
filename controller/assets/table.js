// Every worker in a row, filtered and sorted.
//
// Rows that cannot be seen are neither laid out by the browser (`content-visibility`) nor given new lines each second.

import { byId, el, reconcile, setAttribute, setProperty, setText } from "/assets/dom.js";
import { goneLast } from "/assets/fleet.js";
import { Graph, highest, spread } from "/assets/graph.js";
import { loadBar, stateMark } from "/assets/picture.js";
import { STATES, ago, counted, fullness, milliseconds, modelNames, moment, number, queueWords, reported, workerWords } from "/assets/words.js";

const SECONDS = 60;
const ORDER = Object.keys(STATES);
const last = (list) => list?.at(-1) ?? 0;

/** The mean of what is known of the last ten seconds. */
function recent(list) {
  const known = list.slice(-10).filter((value) => value !== null);
  return known.length === 0 ? 0 : known.reduce((sum, value) => sum + value, 0) / known.length;
}

/** `sort`: what rows are sorted by, ascending at first for words and descending for numbers. */
const COLUMNS = [
  { name: "Worker", sort: (worker) => worker.id },
  { name: "State", sort: (worker) => -ORDER.indexOf(worker.state) },
  { name: "Models", sort: (worker) => worker.models.map((model) => model.name).join() },
  { name: "In flight", sort: (worker) => worker.tickets },
  { name: "Requests/s", sort: (_, series) => recent(series.requests) },
  { name: "Tokens/s", sort: (_, series) => last(series.tokens) },
  { name: "First token", sort: (worker) => worker.ttft_ms ?? -1 },
  { name: "Action" },
];

/** What may be done with a worker; `null`: nothing. */
export function actionFor(worker) {
  if (worker.state === "draining") {
    return "resume";
  }
  return worker.state === "gone" || worker.state === "down" ? null : "drain";
}

export const actionName = (action) => (action === "resume" ? "Resume" : "Drain");

/** Makes a button do for a worker what may be done with it. */
export function updateAction(button, worker) {
  const action = actionFor(worker);
  setText(button, actionName(action));
  setAttribute(button, "data-action", action ?? "drain");
  setAttribute(button, "aria-label", `${actionName(action)} ${worker.id}`);
  setAttribute(button, "title", action ? null : `a worker that is ${worker.state} has nothing to drain`);
  button.disabled = !action;
}

class Row {
  constructor(worker) {
    const cell = (name, ...children) => el(`div.cell-of.${name}`, { role: "cell" }, ...children);
    this.mark = stateMark(worker.state);
    this.name = el("button.link", { type: "button", dir: "auto", "data-node": worker.id, title: worker.id, text: worker.id });
    this.where = el("span.sub.muted");
    this.state = el("span.state-word");
    this.since = el("span.sub.muted");
    this.models = el("span.clamp", { dir: "auto" });
    this.queue = el("span.number.queue");
    this.bar = loadBar();
    this.reported = el("span.sub.muted.number");
    this.rate = el("span.number");
    this.tokens = el("span.number");
    this.ttft = el("span.number");
    this.action = el("button.button.small", { type: "button", "data-worker-action": worker.id });
    this.node = el(
      "div.row",
      { role: "row", "data-worker": worker.id },
      cell("of-name", this.mark, el("span.stack", {}, this.name, this.where)),
      cell("of-state", el("span.stack", {}, this.state, this.since)),
      cell("of-models", this.models),
      cell("of-queue", el("span.stack", {}, el("span.queue-line", {}, this.queue, this.bar), this.reported)),
      cell("of-rate", this.rate),
      cell("of-tokens", this.tokens),
      cell("of-ttft", this.ttft),
      cell("of-action", this.action),
    );
  }

  update(worker) {
    const { running, waiting } = reported(worker);
    const models = modelNames(worker);
    setAttribute(this.node, "data-state", worker.state);
    setAttribute(this.mark, "data-state", worker.state);
    setText(this.where, `${worker.site} · ${worker.transport}`);
    setText(this.state, worker.state);
    setAttribute(this.state, "title", worker.reason ?? STATES[worker.state]);
    setText(this.models, models);
    setAttribute(this.models, "title", models);
    setText(this.queue, queueWords(worker));
    setProperty(this.bar, "--full", fullness(worker).toFixed(3));
    setText(this.reported, running + waiting > 0 ? `says ${running} + ${waiting} waiting` : "");
    setText(this.ttft, milliseconds(worker.ttft_ms));
    updateAction(this.action, worker);
  }

  /** Most rows are never seen, and need no lines. */
  #addLines() {
    this.rates = new Graph("spark");
    this.lines = new Graph("spark");
    this.rate.after(this.rates.node);
    this.tokens.after(this.lines.node);
  }

  /** What passes with time alone. */
  tick(worker, series, now) {
    setText(this.since, ago(worker.since_ms, now));
    setAttribute(this.since, "title", moment(worker.since_ms));
    setText(this.rate, number(recent(series.requests)));
    setText(this.tokens, number(last(series.tokens)));
    if (!this.rates) {
      this.#addLines();
    }
    const requests = series.requests.slice(-SECONDS);
    const tokens = series.tokens.slice(-SECONDS);
    this.rates.draw(spread(requests), highest(requests, 2));
    this.lines.draw(spread(tokens), highest(tokens, 1));
  }
}

export class Table {
  #rows = new Map();
  #nodes = new Map();
  #visible = new Set();
  /** Rows that have nothing in them yet. */
  #fresh = new Set();
  #body = el("div.rows", { role: "rowgroup" });
  #heads;
  #sort = { column: 0, isDown: false };
  /** Names, as the rows are. */
  #order = [];
  #isResorted = false;
  #observer = new IntersectionObserver((entries) => this.#seen(entries), { rootMargin: "200px" });
  /** Called when the order is another. */
  onSort = () => {};

  constructor() {
    this.#heads = COLUMNS.map((column, index) => this.#head(column, index));
    const head = el("div.row.head", { role: "row" }, ...this.#heads);
    byId("workers").append(el("div", { role: "rowgroup" }, head), this.#body);
    this.#showSort();
  }

  #head({ name, sort }, index) {
    const head = el("div.cell-of", { role: "columnheader" });
    if (!sort) {
      head.append(el("span.hidden-text", { text: name }));
      return head;
    }
    const button = el("button.sort", { type: "button", text: name });
    button.addEventListener("click", () => {
      const isNumber = index > 2;
      const isDown = this.#sort.column === index ? !this.#sort.isDown : isNumber;
      this.#sort = { column: index, isDown };
      this.#isResorted = true;
      this.#showSort();
      this.onSort();
    });
    head.append(button);
    return head;
  }

  #showSort() {
    this.#heads.forEach((head, index) => {
      const order = this.#sort.isDown ? "descending" : "ascending";
      setAttribute(head, "aria-sort", index === this.#sort.column ? order : null);
    });
  }

  /** @param isFiltered whether other workers are meant than before */
  draw(fleet, matches, isFiltered) {
    const workers = fleet.workers();
    const sorted = this.#inOrder(workers.filter(matches), fleet);
    const isHeld = !isFiltered && !this.#isResorted && this.#body.matches(":hover, :focus-within");
    const shown = isHeld ? this.#asBefore(sorted) : sorted;
    this.#isResorted = false;
    const order = shown.map((worker) => worker.id);
    if (order.join("\n") !== this.#order.join("\n")) {
      this.#order = order;
      reconcile(this.#body, this.#nodes, shown, (worker) => worker.id, (worker) => this.#add(worker));
      this.#rows.forEach((_, id) => this.#nodes.has(id) || this.#drop(id));
    }
    const now = fleet.now();
    for (const worker of shown) {
      const row = this.#rows.get(worker.id);
      if (fleet.changed.has(worker.id) || this.#fresh.has(worker.id)) {
        row.update(worker);
      }
      if (this.#visible.has(worker.id)) {
        row.tick(worker, fleet.series.get(worker.id), now);
      }
    }
    this.#fresh.clear();
    this.#count(workers, shown.length);
    this.seen = (id) => {
      const worker = fleet.nodes.get(id);
      worker && this.#rows.get(id)?.tick(worker, fleet.series.get(id), fleet.now());
    };
  }

  /** As the rows are now, new ones last: under a pointer, or around the focus, no row may take the place of another. */
  #asBefore(workers) {
    const places = new Map(this.#order.map((id, index) => [id, index]));
    const place = ({ id }) => places.get(id) ?? places.size;
    return workers.toSorted((a, b) => place(a) - place(b));
  }

  #inOrder(workers, fleet) {
    const { sort } = COLUMNS[this.#sort.column];
    const keyed = workers.map((worker) => ({ worker, key: sort(worker, fleet.series.get(worker.id)) }));
    const sign = this.#sort.isDown ? -1 : 1;
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    const byName = (a, b) => compare(a.worker.id, b.worker.id);
    keyed.sort((a, b) => sign * compare(a.key, b.key) || byName(a, b));
    return goneLast(keyed.map(({ worker }) => worker));
  }

  #add(worker) {
    const row = new Row(worker);
    this.#fresh.add(worker.id);
    this.#rows.set(worker.id, row);
    this.#observer.observe(row.node);
    return row.node;
  }

  #drop(id) {
    this.#observer.unobserve(this.#rows.get(id).node);
    this.#rows.delete(id);
    this.#visible.delete(id);
  }

  #seen(entries) {
    for (const { target, isIntersecting } of entries) {
      const id = target.dataset.worker;
      if (isIntersecting) {
        this.#visible.add(id);
        this.seen?.(id);
      } else {
        this.#visible.delete(id);
      }
    }
  }

  #count(all, shown) {
    const words = shown === all.length ? workerWords(all) : `${shown} of ${counted(all.length, "worker")}`;
    setText(byId("workers-count"), words);
    setText(byId("workers-empty"), all.length === 0 ? "No worker has registered yet." : "No worker is as the filter says.");
    byId("workers-empty").hidden = shown > 0;
  }
}
