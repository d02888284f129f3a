// The connection to the controller: it is taken up again, whatever ended it, and a silent one counts as ended.
//
// A browser opens six connections to a host at most, for all its tabs together: one that nobody sees gives its own back.

import { NoKey, PATIENCE, reasonOf, request } from "/assets/key.js";
import { readEvents } from "/assets/sse.js";

const FIRST_PAUSE = 250;
const LONGEST_PAUSE = 5000;
/** An update comes each second; without one for so long there is nobody at the other end. */
const SILENCE = 6000;
/** Who looks into another tab and comes back within so long has missed nothing. */
const UNSEEN = 5000;

/** Reasons to end an attempt that are no failures. */
const AGAIN = new Error("it is tried again");
const HIDDEN = new Error("nobody looks");

export class Stream {
  #listener;
  #pause = FIRST_PAUSE;
  #attempt = null;
  #isLive = false;
  #isHidden = false;
  /** Whether somebody may be asked for a key. */
  #mayAsk = true;
  /** What it waits for: `pause`, `key`, `eyes`, or nothing. */
  #waitsFor = null;
  #wake = null;
  #hiding = null;

  /** @param listener has `topology`, `update`, `lost(reason, pause)`, `refused(reason)` and `asleep()`. */
  constructor(listener) {
    this.#listener = listener;
    addEventListener("online", () => this.#nudge("pause"));
    document.addEventListener("visibilitychange", () => this.#look());
    this.#look();
  }

  /** Tries at once: where it waits to try, and where an attempt hangs. */
  retry() {
    this.#mayAsk = true;
    if (this.#waitsFor) {
      this.#wake();
    } else if (!this.#isLive) {
      this.#attempt?.abort(AGAIN);
    }
  }

  /** There is another key, or none: what a forgotten one was good for ends, and nobody is asked for it again. */
  keyChanged(key) {
    if (!key) {
      this.#mayAsk = false;
      this.#attempt?.abort(AGAIN);
    } else if (this.#waitsFor === "key") {
      this.#wake();
    }
  }

  /** Tries at once where it waits for one of these; nobody who has refused to give a key is asked for it again. */
  #nudge(...reasons) {
    if (reasons.includes(this.#waitsFor)) {
      this.#wake();
    }
  }

  #look() {
    clearTimeout(this.#hiding);
    this.#isHidden = false;
    if (document.hidden) {
      this.#hiding = setTimeout(() => this.#hide(), UNSEEN);
    } else {
      this.#nudge("pause", "eyes");
    }
  }

  /** One that is not live yet may wait for a key, which may be sought in the other tab. */
  #hide() {
    this.#isHidden = true;
    if (this.#isLive) {
      this.#attempt?.abort(HIDDEN);
    }
  }

  async run() {
    for (;;) {
      if (this.#isHidden) {
        this.#listener.asleep();
        await this.#sleep("eyes", null);
      }
      try {
        await this.#read();
        await this.#rest("the controller has ended the connection");
      } catch (error) {
        await this.#failed(error);
      }
    }
  }

  async #failed(error) {
    if (error === AGAIN || error === HIDDEN) {
      return;
    }
    if (error instanceof NoKey) {
      this.#listener.refused(error.message);
      await this.#sleep("key", null);
      this.#mayAsk = true;
    } else {
      await this.#rest(error.message);
    }
  }

  async #read() {
    const attempt = new AbortController();
    this.#attempt = attempt;
    try {
      const dialog = this.#mayAsk ? {} : null;
      const headers = { accept: "text/event-stream" };
      const response = await request("/events", { signal: attempt.signal, headers, dialog, patience: PATIENCE });
      if (!response.ok) {
        throw new Error(await reasonOf(response));
      }
      await readEvents(response, (event, data) => this.#take(event, data), SILENCE);
    } catch (error) {
      throw attempt.signal.aborted ? attempt.signal.reason : error;
    } finally {
      this.#attempt = null;
      this.#isLive = false;
      attempt.abort();
    }
  }

  #take(event, data) {
    if (event === "topology" || event === "update") {
      this.#isLive = true;
      this.#mayAsk = true;
      this.#pause = FIRST_PAUSE;
      this.#listener[event](JSON.parse(data));
      if (this.#isHidden) {
        this.#hide();
      }
    }
  }

  async #rest(reason) {
    const pause = this.#pause;
    this.#pause = Math.min(LONGEST_PAUSE, this.#pause * 2);
    this.#listener.lost(reason, pause);
    await this.#sleep("pause", pause);
  }

  /** Until the pause is over or somebody is impatient; `null`: until then only. */
  async #sleep(what, pause) {
    this.#waitsFor = what;
    await new Promise((resolve) => {
      this.#wake = resolve;
      if (pause !== null) {
        setTimeout(resolve, pause);
      }
    });
    this.#waitsFor = null;
  }
}
