// Filters the tables as one types, without asking the server; what is chosen stays in sight.
"use strict";
(() => {
    const search = document.getElementById("syncdata-q");
    const rows = [...document.querySelectorAll("#syncdata-choice tbody tr")];
    const none = document.getElementById("syncdata-none");
    const filter = () => {
        const wanted = search.value.trim().toLowerCase();
        let shown = 0;
        for (const row of rows) {
            const fits = row.dataset.name.toLowerCase().includes(wanted) || row.querySelector("input").checked;
            row.hidden = !fits;
            shown += fits;
        }
        none.hidden = shown > 0 || rows.length === 0;
    };
    search.addEventListener("input", filter);
    filter();  // what was typed before this was loaded
})();
