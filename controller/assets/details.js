// One node with everything that is known of it, in a panel beside the page.

import { byId, el, reconcile, setAttribute, setProperty, setText } from "/assets/dom.js";
import { Graph, highest, spread } from "/assets/graph.js";
import { makeWarning } from "/assets/lists.js";
import { loadBar, stateMark } from "/assets/picture.js";
import { updateAction } from "/assets/table.js";
import { KINDS, STATES, ago, capabilityWords, clock, count, counted, fullness, milliseconds, moment, number, percent, queueWords, reported } from "/assets/words.js";

const SOURCES = { registered: "registered", static: "peers file" };
const RESOURCES = {
  cpu: "Processors",
  model_cpu: "of these, models",
  memory: "Memory",
  network: "Network",
  gpu: "GPU",
  gpu_memory: "GPU memory",
  kv_cache: "KV cache",
};
const GRAPHS = [
  { name: "Requests/s", field: "requests", colour: "accent", words: number },
  { name: "Tokens/s", field: "tokens", colour: "ready", words: number },
  { name: "First token", field: "ttft", colour: "suspect", words: milliseconds },
  { name: "In flight", field: "queue", colour: "draining", words: number },
];

export class Details {
  #panel = byId("details");
  #id = null;
  #opener = null;
  #body = null;

  constructor() {
    this.#panel.addEventListener("click", (event) => event.target.closest("[data-close]") && this.close());
    this.#panel.addEventListener("keydown", (event) => event.key === "Escape" && this.close());
    this.#panel.addEventListener("close", () => this.#closed());
  }

  open(id, fleet) {
    const node = fleet.nodes.get(id);
    if (!node) {
      return;
    }
    this.#opener = document.activeElement;
    this.#id = id;
    this.#body = node.kind === "worker" ? new WorkerDetails(node) : new PlainDetails(node);
    this.#panel.replaceChildren(this.#body.node);
    this.draw(fleet);
    this.#panel.show();
    this.#panel.scrollTop = 0;
    this.#panel.querySelector("[data-close]").focus();
  }

  close() {
    this.#panel.close();
  }

  #closed() {
    this.#id = null;
    this.#body = null;
    this.#opener?.focus?.();
  }

  draw(fleet) {
    if (this.#body) {
      this.#body.draw(fleet.nodes.get(this.#id) ?? null, fleet.series.get(this.#id), fleet.now());
    }
  }
}

function head(node, mark) {
  const name = el("h2.details-name", { id: "details-name", dir: "auto", text: node.id });
  const close = el("button.button.icon.details-close", { type: "button", "data-close": "", "aria-label": "Close the details", text: "✕" });
  return el("div.details-head", {}, mark, name, close);
}

/** Pairs of a name and a value; those without a value are left out. */
class Facts {
  #known = new Map();
  node = el("dl.facts-list");

  draw(pairs) {
    const told = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
    const make = ([name]) => el("div", {}, el("dt.muted", { text: name }), el("dd", { dir: "auto" }));
    reconcile(this.node, this.#known, told, ([name]) => name, make);
    for (const [name, value, title] of told) {
      const shown = this.#known.get(name).lastChild;
      setText(shown, value);
      setAttribute(shown, "title", title ?? null);
    }
  }
}

class PlainDetails {
  #facts = new Facts();

  constructor(node) {
    this.node = el("div.details-body", {}, head(node, null), this.#facts.node);
  }

  draw(node, _, now) {
    if (!node) {
      this.#facts.draw([["State", "no longer part of the fleet"]]);
      return;
    }
    const common = [["Kind", node.kind], ["Site", node.site], ["Version", node.version]];
    if (node.kind === "controller") {
      const since = [ago(node.started_ms, now), moment(node.started_ms)];
      this.#facts.draw([...common, ["Policy", node.policy], ["Started", ...since], ["Waiting", counted(node.waiting, "request")]]);
    } else {
      this.#facts.draw([...common, ["Address", node.address], ["Links", count(node.links)], ["In flight", counted(node.tickets, "request")]]);
    }
  }
}

class WorkerDetails {
  #facts = new Facts();
  #totals = new Facts();
  #mark;
  #state = el("span.state-word");
  #why = el("span");
  #action = el("button.button.small", { type: "button" });
  #queue = el("span.number");
  #bar = loadBar();
  #reported = el("p.sub.muted.number");
  #graphs = GRAPHS.map((what) => new SmallChart(what));
  #models = el("ul.details-models");
  #modelNodes = new Map();
  #resources = el("ul.resources");
  #resourceNodes = new Map();
  #resourcesTitle = el("h3", { text: "Machine in use" });
  #warnings = el("ul.details-warnings");
  #warningNodes = new Map();

  constructor(worker) {
    this.#mark = stateMark(worker.state);
    setAttribute(this.#action, "data-worker-action", worker.id);
    const state = el("div.details-state", {}, el("p", {}, this.#state, " – ", this.#why), this.#action);
    const queue = el("div.details-queue", {}, el("p.queue-line", {}, el("span.muted", { text: "In flight" }), this.#bar, this.#queue), this.#reported);
    this.node = el(
      "div.details-body",
      {},
      head(worker, this.#mark),
      state,
      this.#warnings,
      queue,
      el("div.small-charts", {}, ...this.#graphs.map((graph) => graph.node)),
      el("h3", { text: "Models" }),
      this.#models,
      this.#resourcesTitle,
      this.#resources,
      el("h3", { text: "About" }),
      this.#facts.node,
      el("h3", { text: "Since the controller knows it" }),
      this.#totals.node,
    );
  }

  draw(worker, series, now) {
    if (!worker) {
      setText(this.#state, "gone");
      setText(this.#why, "no longer part of the fleet");
      setAttribute(this.node, "data-state", "gone");
      setAttribute(this.#mark, "data-state", "gone");
      this.#action.disabled = true;
      return;
    }
    this.#drawState(worker);
    this.#drawModels(worker);
    this.#drawResources(worker.resources ?? {});
    this.#drawFacts(worker, now);
    reconcile(this.#warnings, this.#warningNodes, worker.warnings ?? [], (text) => text, makeWarning);
    this.#graphs.forEach((graph) => graph.draw(series));
  }

  #drawState(worker) {
    setAttribute(this.node, "data-state", worker.state);
    setAttribute(this.#mark, "data-state", worker.state);
    setText(this.#state, worker.state);
    setText(this.#why, worker.reason ?? STATES[worker.state]);
    updateAction(this.#action, worker);
    setText(this.#queue, queueWords(worker));
    setProperty(this.#bar, "--full", fullness(worker).toFixed(3));
    const { running, waiting } = reported(worker);
    setText(this.#reported, `In its own words: ${count(running)} running, ${count(waiting)} waiting`);
  }

  #drawModels(worker) {
    const make = (model) => el("li", {}, el("p.model-name", { dir: "auto", text: model.name }), el("p.sub.muted.number"));
    reconcile(this.#models, this.#modelNodes, worker.models, (model) => model.name, make);
    for (const model of worker.models) {
      const load = worker.reported.find((one) => one.model === model.name);
      const words = [
        KINDS[model.kind],
        model.context_length && `${count(model.context_length)} tokens`,
        model.capacity && `room for ${model.capacity.running} + ${model.capacity.waiting} waiting`,
        load && `says ${load.running} + ${load.waiting} waiting`,
      ];
      setText(this.#modelNodes.get(model.name).lastChild, words.filter(Boolean).join(" · "));
    }
  }

  #drawResources(resources) {
    const told = Object.keys(RESOURCES).filter((name) => typeof resources[name] === "number");
    this.#resourcesTitle.hidden = told.length === 0;
    const make = (name) => el("li.queue-line", {}, el("span.muted", { text: RESOURCES[name] }), loadBar(), el("span.number"));
    reconcile(this.#resources, this.#resourceNodes, told, (name) => name, make);
    for (const name of told) {
      const [, bar, words] = this.#resourceNodes.get(name).children;
      setProperty(bar, "--full", Math.min(1, resources[name]).toFixed(3));
      setText(words, percent(resources[name]));
    }
  }

  #drawFacts(worker, now) {
    this.#facts.draw([
      ["Address", worker.address],
      ["Site", worker.site],
      ["Transport", worker.transport],
      ["Known from", SOURCES[worker.source] ?? worker.source],
      ["In this state", `since ${clock(worker.since_ms)}, ${ago(worker.since_ms, now)}`, moment(worker.since_ms)],
      ["Machine", worker.capabilities ? capabilityWords(worker.capabilities).join(", ") : null],
      ["Relative speed", number(worker.speed)],
      ["Response", worker.response_ms ? milliseconds(worker.response_ms) : null],
      ["Version", worker.version],
    ]);
    const { requests, failures, tokens } = worker.totals;
    this.#totals.draw([["Requests", count(requests)], ["Failures", count(failures)], ["Tokens", count(tokens)]]);
  }
}

class SmallChart {
  #graph = new Graph("small-graph");
  #value = el("span.number");

  constructor(what) {
    this.what = what;
    const title = el("figcaption", {}, el("span.muted", { text: what.name }), this.#value);
    this.node = el("figure.small-chart", { "data-colour": what.colour }, title, this.#graph.node);
  }

  draw(series) {
    const values = series?.[this.what.field] ?? [];
    const now = this.what.words(values.at(-1) ?? null);
    const most = highest(values, 1);
    setText(this.#value, now);
    this.#graph.draw(spread(values), most * 1.08, `${this.what.name}: ${now} now, at most ${this.what.words(most)} in two minutes`);
  }
}
