import { Config } from "./config";

/** What happened to a device's registration. */
export class Lifecycle {
  /** All members, also those that are younger than this SDK. */
  readonly members: Config;

  constructor(members: Config) {
    this.members = members;
  }

  /** "registered" or "changed". */
  get event(): string {
    return this.members.string("event", "");
  }

  get domain(): string {
    return this.members.string("domain", "");
  }

  /** The domain before, "" if it is the same. */
  get was(): string {
    return this.members.string("was", "");
  }

  /** The names of the device's labels. */
  get labels(): string[] {
    return this.members.object("labels").keys();
  }

  /** The value of a label, "" if the device hasn't got it. */
  label(name: string): string {
    return this.members.object("labels").string(name, "");
  }
}
