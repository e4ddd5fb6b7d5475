/** What runs beside an application in a pod: sidecars, the wrapper's protocol, backups. */
export {};
