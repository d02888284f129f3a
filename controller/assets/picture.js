// A small fleet as a picture: gateways, the controller, and the workers of each site, with wires between them.

import { byId, el, oncePerFrame, reconcile, setAttribute, setProperty, setText, svg } from "/assets/dom.js";
import { goneLast } from "/assets/fleet.js";
import { count, fullness, modelNames, queueWords, workerWords } from "/assets/words.js";

/** A button that opens the details of a node. */
function nodeButton(node, ...children) {
  return el(`button.node.${node.kind}`, { type: "button", "data-node": node.id }, ...children);
}

function nameLine(node, mark) {
  const name = el("span.node-name", { dir: "auto", title: node.id, text: node.id });
  return el("span.node-head", {}, mark, name);
}

/** The sign of a state: a shape besides a colour. */
export const stateMark = (state) => el("i.mark", { "data-state": state, "aria-hidden": "true" });

/** How full a worker is, as a bar. */
export const loadBar = () => el("span.bar", { "aria-hidden": "true" }, el("span.bar-fill"));

class WorkerButton {
  constructor(worker) {
    this.mark = stateMark(worker.state);
    this.state = el("span.state-word");
    this.queue = el("span.number");
    this.bar = loadBar();
    this.models = el("span.node-models.muted", { dir: "auto" });
    const load = el("span.node-load", {}, this.state, this.queue);
    this.node = nodeButton(worker, nameLine(worker, this.mark), load, this.bar, this.models);
    this.update(worker);
  }

  update(worker) {
    const models = modelNames(worker);
    setAttribute(this.node, "data-state", worker.state);
    setAttribute(this.mark, "data-state", worker.state);
    setText(this.state, worker.state);
    const queue = queueWords(worker);
    setText(this.queue, queue.includes(" ") ? queue : `${queue} in flight`);
    setProperty(this.bar, "--full", fullness(worker).toFixed(3));
    setText(this.models, models);
    setAttribute(this.models, "title", models);
  }
}

class PlainButton {
  constructor(node) {
    this.title = el("span.node-kind.muted");
    this.words = el("span.node-words.number");
    this.node = nodeButton(node, this.title, nameLine(node, null), this.words);
    this.update(node);
  }

  update(node) {
    const isController = node.kind === "controller";
    setText(this.title, isController ? node.policy : "gateway");
    setText(this.words, isController ? `${count(node.waiting)} waiting` : `${count(node.tickets)} in flight`);
  }
}

export class Picture {
  #wires = svg("svg.wires", { "aria-hidden": "true" });
  #gateways = el("div.map-column.map-gateways");
  #control = el("div.map-column.map-control");
  #sites = el("div.map-column.map-sites");
  #known = { gateways: new Map(), control: new Map(), sites: new Map() };
  #buttons = new Map();
  #fleet = null;

  constructor() {
    this.node = el("div.map", {}, this.#wires, this.#gateways, this.#control, this.#sites);
    const redraw = oncePerFrame(() => this.#wire());
    new ResizeObserver(redraw).observe(this.node);
  }

  draw(fleet, matches) {
    this.#fleet = fleet;
    if (fleet.members || this.#buttons.size === 0) {
      this.#place(fleet);
    }
    for (const [id, button] of this.#buttons) {
      const node = fleet.nodes.get(id);
      button.update(node);
      setAttribute(button.node, "data-dim", node.kind === "worker" && !matches(node));
    }
    this.#wire();
  }

  #button(node) {
    const button = node.kind === "worker" ? new WorkerButton(node) : new PlainButton(node);
    this.#buttons.set(node.id, button);
    return button.node;
  }

  #place(fleet) {
    this.#buttons.forEach((_, id) => fleet.nodes.has(id) || this.#buttons.delete(id));
    const make = (node) => this.#button(node);
    const place = (column, known, nodes) => reconcile(column, known, nodes, (node) => node.id, make);
    place(this.#gateways, this.#known.gateways, fleet.gateways());
    place(this.#control, this.#known.control, [fleet.controller()].filter(Boolean));
    setAttribute(this.#gateways, "data-empty", this.#known.gateways.size === 0 && "no gateway");
    this.#placeSites(fleet, make);
  }

  #placeSites(fleet, make) {
    const sites = bySite(fleet);
    setAttribute(this.#sites, "data-empty", sites.length === 0 && "no worker");
    reconcile(this.#sites, this.#known.sites, sites, (site) => site.name, makeSite);
    for (const { name, workers } of sites) {
      const site = this.#known.sites.get(name);
      setText(site.querySelector(".site-count"), workerWords(workers));
      site.known ??= new Map();
      reconcile(site.querySelector(".site-workers"), site.known, workers, (worker) => worker.id, make);
    }
  }

  /** One wire for each gateway, and one or two for each site: workers that beat, and workers that are probed. */
  #wire() {
    const control = this.#known.control.values().next().value;
    const box = this.node.getBoundingClientRect();
    if (!control || !this.#fleet || box.width === 0) {
      return;
    }
    setAttribute(this.#wires, "viewBox", `0 0 ${box.width} ${box.height}`);
    const isNarrow = !getComputedStyle(this.node).gridTemplateColumns.includes(" "); // one column
    const draw = new Wires(this.#wires, box, isNarrow);
    for (const [id, gateway] of this.#known.gateways) {
      if (this.#fleet.links.some((link) => link.kind === "dispatch" && link.from === id)) {
        draw.wire(gateway, control, "dispatch", this.#fleet.nodes.get(id).tickets > 0);
      }
    }
    for (const { name, workers } of bySite(this.#fleet)) {
      const ids = new Set(workers.map((worker) => worker.id));
      const isBusy = workers.some((worker) => worker.tickets > 0);
      const has = (kind) => this.#fleet.links.some((link) => link.kind === kind && ids.has(kind === "probe" ? link.to : link.from));
      for (const kind of ["heartbeat", "probe"].filter(has)) {
        draw.wire(control, this.#known.sites.get(name), kind, isBusy);
      }
    }
    draw.finish();
  }
}

/** The sites that have workers, in the controller's order. */
export function bySite(fleet) {
  const sites = fleet.sites.map(({ name, nodes }) => ({
    name,
    workers: goneLast(nodes.map((id) => fleet.nodes.get(id)).filter((node) => node?.kind === "worker")),
  }));
  return sites.filter((site) => site.workers.length > 0);
}

function makeSite({ name }) {
  const title = el("p.site-title", {}, el("span.site-name", { dir: "auto", text: name }), el("span.site-count.muted.number"));
  return el("div.site", { role: "group", "aria-label": `Site ${name}` }, title, el("div.site-workers"));
}

class Wires {
  #paths;
  #used = 0;

  constructor(node, box, isNarrow) {
    this.parent = node;
    this.box = box;
    this.isNarrow = isNarrow;
    this.#paths = [...node.children];
  }

  wire(from, to, kind, isBusy) {
    const path = this.#paths[this.#used] ?? this.parent.appendChild(svg("path.wire"));
    this.#used += 1;
    setAttribute(path, "d", this.#curve(from.getBoundingClientRect(), to.getBoundingClientRect(), kind));
    setAttribute(path, "data-kind", kind);
    setAttribute(path, "data-busy", isBusy);
  }

  finish() {
    this.#paths.slice(this.#used).forEach((path) => path.remove());
  }

  #curve(from, to, kind) {
    const shift = kind === "probe" ? 7 : 0; // beside the wire of those that beat
    if (this.isNarrow) {
      const x1 = from.left + from.width / 2 - this.box.left + shift;
      const x2 = to.left + to.width / 2 - this.box.left + shift;
      const [y1, y2] = [from.bottom - this.box.top, to.top - this.box.top];
      const middle = (y1 + y2) / 2;
      return `M${x1} ${y1}C${x1} ${middle} ${x2} ${middle} ${x2} ${y2}`;
    }
    const y1 = from.top + from.height / 2 - this.box.top + shift;
    const y2 = to.top + Math.min(to.height / 2, to.height) - this.box.top + shift;
    const [x1, x2] = [from.right - this.box.left, to.left - this.box.left];
    const middle = (x1 + x2) / 2;
    return `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`;
  }
}
