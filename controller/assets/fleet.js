// What the controller has said: its fleet as of the last event, and the last minutes of every worker.

const SECONDS_KEPT = 120;
const HISTORY_KEPT = 600;
const CHANGES_KEPT = 100;
/** Seconds between two events that are not yet a gap: one comes each second, or a little late. */
const LATE = 3;

/** The numbers of one worker, each second, oldest first; `null` where nothing was told. */
class Series {
  requests = [];
  tokens = [];
  ttft = [];
  queue = [];
  #last = null;

  /** @param missed seconds of which nothing was told: what a count grew by then is no rate of this second */
  push(worker, missed) {
    const grown = (field) => {
      const before = this.#last?.totals[field] ?? worker.totals[field];
      return missed > 0 ? null : Math.max(0, worker.totals[field] - before);
    };
    for (let second = 0; second < Math.min(missed, SECONDS_KEPT); second += 1) {
      [this.requests, this.tokens, this.ttft, this.queue].forEach((list) => this.#add(list, null));
    }
    this.#add(this.requests, grown("requests"));
    this.#add(this.tokens, worker.tokens_per_second ?? grown("tokens"));
    this.#add(this.ttft, worker.ttft_ms ?? null);
    this.#add(this.queue, worker.tickets);
    this.#last = worker;
  }

  #add(list, value) {
    list.push(value);
    if (list.length > SECONDS_KEPT) {
      list.shift();
    }
  }
}

export class Fleet {
  epoch = null;
  nodes = new Map();
  links = [];
  sites = [];
  models = [];
  changes = [];
  history = [];
  peers = null;
  warnings = [];
  series = new Map();
  /** Nodes that differ from what was last drawn. */
  changed = new Set();
  /** Whether nodes have come or gone since the last drawing. */
  members = true;
  #at = 0;
  #received = 0;

  /** Now, by the controller's clock, which may not be that of this machine. */
  now() {
    return this.#at + (performance.now() - this.#received);
  }

  /** Everything anew: the beginning of a stream. */
  replace(topology) {
    if (this.epoch !== topology.epoch) {
      this.series.clear(); // another run of the controller counts from nought
    }
    this.epoch = topology.epoch;
    this.nodes = new Map(topology.nodes.map((node) => [node.id, node]));
    this.links = topology.links;
    this.sites = topology.sites;
    this.models = topology.models;
    this.changes = topology.changes.slice(0, CHANGES_KEPT);
    this.history = topology.history.slice(-HISTORY_KEPT);
    this.peers = topology.peers ?? null;
    this.warnings = topology.warnings;
    this.changed = new Set(this.nodes.keys());
    this.members = true;
    this.#tick(topology.at_ms);
  }

  /** What has changed since. */
  update(update) {
    for (const node of update.nodes) {
      const before = this.nodes.get(node.id);
      this.members ||= !before || isGone(before) !== isGone(node);
      this.nodes.set(node.id, node);
      this.changed.add(node.id);
    }
    for (const id of update.gone) {
      this.nodes.delete(id);
      this.series.delete(id);
      this.members = true;
    }
    if (update.sites) {
      this.members = true;
    }
    for (const field of ["links", "sites", "models", "peers", "warnings"]) {
      this[field] = update[field] ?? this[field];
    }
    this.changes = [...update.changes, ...this.changes].slice(0, CHANGES_KEPT);
    this.history = [...this.history, ...update.history].slice(-HISTORY_KEPT);
    this.#tick(update.at_ms);
  }

  #tick(at) {
    const passed = Math.round((at - this.#at) / 1000);
    const missed = this.#at > 0 && passed > LATE ? passed - 1 : 0;
    this.#at = at;
    this.#received = performance.now();
    for (const worker of this.workers()) {
      let series = this.series.get(worker.id);
      if (!series) {
        series = new Series();
        this.series.set(worker.id, series);
      }
      series.push(worker, missed);
    }
  }

  controller() {
    return [...this.nodes.values()].find((node) => node.kind === "controller") ?? null;
  }

  gateways() {
    return this.#kind("gateway");
  }

  /** By name, and those that are gone after the others. */
  workers() {
    return goneLast(this.#kind("worker"));
  }

  #kind(kind) {
    return [...this.nodes.values()].filter((node) => node.kind === kind);
  }
}

export const isGone = (node) => node.state === "gone";

/** In the order in which they are, but those that are gone after the others. */
export const goneLast = (workers) => [...workers.filter((worker) => !isGone(worker)), ...workers.filter(isGone)];

/** Whether a worker is meant by what stands in the filter and by the states that are picked. */
export function matcher(text, state) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return (worker) => {
    if (state && worker.state !== state) {
      return false;
    }
    if (words.length === 0) {
      return true;
    }
    const names = worker.models.map((model) => model.name);
    const hay = [worker.id, worker.site, worker.state, worker.transport, ...names].join("\n").toLowerCase();
    return words.every((word) => hay.includes(word));
  };
}
