// Tells the server the browser's time zone, so that its pages speak of the user's time.
"use strict";
(() => {
    const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
    if (zone && !document.cookie.split("; ").includes(`syncdata_tz=${zone}`)) {
        const secure = location.protocol === "https:" ? "; Secure" : "";
        document.cookie = `syncdata_tz=${zone}; Path=/; Max-Age=31536000; SameSite=Lax${secure}`;
    }
})();
