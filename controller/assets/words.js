// Numbers, times and states in words.

/** Every state of a worker, worst last; `meaning` is what its operator should know. */
export const STATES = {
  ready: "gets requests",
  suspect: "failed lately: gets one request at a time",
  paused: "its machine is short of something: gets requests only where no other worker can",
  open: "failed repeatedly: gets nothing for a while",
  draining: "finishes what it has and gets nothing new",
  down: "does not answer its probes",
  gone: "its lease has ended, or it has left",
};

export const KINDS = {
  generate: "text generation",
  embed: "embeddings",
  sparse_embed: "sparse embeddings",
  rerank: "reranking",
  classify: "classification",
  moderate: "moderation",
  entities: "entities",
  tensor: "tensors",
};

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const clockTime = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const dateTime = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "long", hourCycle: "h23" });

/** A number that may have digits after the point, as short as it can be read. */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) {
    return "–";
  }
  if (Math.abs(value) >= 100_000) {
    return compact.format(value);
  }
  if (Math.abs(value) >= 100 || Number.isInteger(value)) {
    return whole.format(value);
  }
  return value.toFixed(Math.abs(value) >= 10 ? 1 : 2).replace(/\.?0+$/, "");
}

/** A count, every digit of it. */
export const count = (value) => whole.format(value ?? 0);

/** `1 request`, `2 requests`. */
export const counted = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

/** A time that something takes. */
export function milliseconds(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) {
    return "–";
  }
  if (value < 1000) {
    return `${number(value < 10 ? Number(value.toFixed(1)) : Math.round(value))} ms`;
  }
  return `${number(value / 1000)} s`;
}

/** A share of something, from 0 to 1. */
export const percent = (value) => `${Math.round(value * 100)} %`;

/** A length of time, coarse: `40 s`, `12 min`, `3 h`, `5 days`. */
export function span(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 90) {
    return `${seconds} s`;
  }
  if (seconds < 5400) {
    return `${Math.floor(seconds / 60)} min`;
  }
  if (seconds < 172_800) {
    return `${Math.floor(seconds / 3600)} h`;
  }
  return `${Math.floor(seconds / 86_400)} days`;
}

export const ago = (at, now) => (now - at < 1500 ? "now" : `${span(now - at)} ago`);
export const clock = (at) => clockTime.format(at);
export const moment = (at) => dateTime.format(at);

/** Requests that a model takes at once, or `null` where that is not known. */
const room = ({ capacity }) => (capacity ? capacity.running + capacity.waiting : null);

/** The models of a worker. */
export const modelNames = (worker) => worker.models.map((model) => model.name).join(", ") || "no model";

/** `3 workers, 5 gone`. */
export function workerWords(workers) {
  const gone = workers.filter((worker) => worker.state === "gone").length;
  const words = counted(workers.length - gone, "worker");
  return gone > 0 ? `${words}, ${count(gone)} gone` : words;
}

/** What a worker says it has, over all its models. */
export function reported(worker) {
  const sum = (field) => worker.reported.reduce((total, load) => total + load[field], 0);
  return { running: sum("running"), waiting: sum("waiting") };
}

/** `3 of 8`; `3` where no limit is known, or where each model has its own: one can be full beside an idle one. */
export function queueWords(worker) {
  const most = worker.models.length === 1 ? room(worker.models[0]) : null;
  return most === null ? count(worker.tickets) : `${count(worker.tickets)} of ${count(most)}`;
}

/** How full a worker is, from 0 to 1: as its fullest model; without a limit, ten requests look half full. */
export function fullness(worker) {
  const rooms = worker.models.map(room);
  const isLimited = rooms.length > 0 && !rooms.includes(null);
  const most = rooms.reduce((sum, one) => sum + one, 0);
  const byTickets = isLimited ? worker.tickets / Math.max(1, most) : worker.tickets / (worker.tickets + 10);
  return Math.min(1, Math.max(byTickets, ...worker.models.map((model) => modelFullness(worker, model))));
}

/** How full a model is in its worker's words; 0 where these, or its limit, are not known. */
function modelFullness(worker, model) {
  const load = worker.reported.find((one) => one.model === model.name);
  return load && model.capacity ? (load.running + load.waiting) / Math.max(1, room(model)) : 0;
}

/** What a machine has, as a list of words. */
export function capabilityWords(capabilities) {
  const { cpus, memory_gb: memory, gpu, gpu_memory_gb: gpuMemory } = capabilities;
  const words = [];
  if (cpus !== undefined) {
    words.push(counted(cpus, "processor"));
  }
  if (memory !== undefined) {
    words.push(`${number(memory)} GB memory`);
  }
  if (typeof gpu === "boolean") {
    words.push(gpu ? "with GPU" : "no GPU");
  } else if (typeof gpu === "number") {
    words.push(counted(gpu, "GPU"));
  } else if (gpu) {
    words.push(gpu);
  }
  if (gpuMemory !== undefined) {
    words.push(`${number(gpuMemory)} GB on GPUs`);
  }
  return words;
}
