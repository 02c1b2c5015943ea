/** Tells people who are not at the screen: alerts, and the start and the end of a run, to the chat that the record names. */
import { fileError } from "../checkpoint/durable.ts";
import { dirname } from "node:path";
import { claimAlert, sendFeishuMessage } from "./alerts.ts";

/** The run record's `monitor.alert`. */
export interface AlertSettings {
  readonly enable_feishu_alert: boolean;
  readonly feishu_alert_address: string | null;
  readonly alert_file_path: string | null;
}

/** How long a finished run waits for a chat that does not answer; the message under way has its own limit. */
const patienceMs = 30_000;

export interface AlertSender {
  /** Something to act on. With an alert file, each text is sent once. */
  alert(text: string): void;
  /** Something to know. */
  message(text: string): void;
  /** Resolves when what is under way has been delivered or given up, and gives up the rest after half a minute. */
  settled(): Promise<void>;
}

/**
 * A sender for one run. The alert file begins empty.
 *
 * @param options.title of every message
 * @param options.onError told what could not be delivered; that never ends a run
 * @throws {Deno.errors.NotCapable} where the network is closed to the address, saying how to open it
 *
 * @example
 * ```ts
 * import { createAlertSender } from "./alert_sender.ts";
 * const settings = { enable_feishu_alert: false, feishu_alert_address: null, alert_file_path: null };
 * createAlertSender(settings, { title: "none_demo", onError: console.error }).alert("nobody wants to know");
 * ```
 */
export function createAlertSender(
  { enable_feishu_alert, feishu_alert_address, alert_file_path }: AlertSettings,
  { title, onError }: { readonly title: string; readonly onError: (sentence: string) => void },
): AlertSender {
  const address = enable_feishu_alert ? feishu_alert_address : null;
  if (address !== null) expectReachable(new URL(address));
  if (alert_file_path !== null) {
    Deno.mkdirSync(dirname(alert_file_path), { recursive: true });
    Deno.writeTextFileSync(alert_file_path, "");
  }
  let underWay: Promise<unknown> = Promise.resolve(), late = false;
  const message = (text: string) => {
    if (address === null) return;
    // One after the other, so that the chat reads in order.
    underWay = underWay.then(() => late || sendFeishuMessage({ address, title, text, onError }));
  };
  return {
    message,
    alert(text) {
      try {
        if (alert_file_path !== null && !claimAlert(alert_file_path, text)) return;
      } catch (error) {
        onError(fileError("write alert file", alert_file_path!, error).message);
      }
      message(text);
    },
    async settled() {
      const timer = setTimeout(() => late = true, patienceMs);
      await underWay;
      clearTimeout(timer);
    },
  };
}

/** A run that cannot tell what it was asked to tell is better stopped before it begins. */
function expectReachable({ protocol, hostname, port }: URL): void {
  const host = `${hostname}:${port || (protocol === "https:" ? 443 : 80)}`;
  if (Deno.permissions.querySync({ name: "net", host }).state === "granted") return;
  throw new Deno.errors.NotCapable(
    `Cannot send alerts to ${host} (monitor.alert.feishu_alert_address): this program may reach no other host than its ` +
      `own; start it with TROUPE_NET=,${port ? host : hostname} in the environment`,
  );
}
