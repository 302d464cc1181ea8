„Nyní máme čtyřměsíční myši bez cukrovky, které ji dříve měly,“ dodal.
Dr. Ehud Ur, profesor medicíny na Dalhousieově univerzitě v Halifaxu v Novém Skotsku a zároveň předseda klinické a vědecké divize Kanadské diabetické asociace upozornil, že výzkum je teprve ve svých počátcích.
Stejně jako někteří další experti je skeptický ohledně toho, zda je možné diabetes vyléčit. Poukazuje na to, že tato zjištění se netýkají lidí, kteří již mají diabetes 1. typu.
Sara Danius, stálá tajemnice Nobelovy komise pro literaturu na Švédské akademii, v pondělí skrze rádiový pořad na švédském Sveriges Radio veřejně oznámila, že po marné snaze přímo zkontaktovat Boba Dylana po jeho výhře Nobelovy ceny za literaturu v roce 2016 komise zanechává svých snah o jeho zkontaktování.
Danius uvedl: „Právě teď neděláme nic. Volal jsem a posílal e-maily jeho nejbližšímu spolupracovníkovi a obdržel jsem velmi přátelské odpovědi. Prozatím to rozhodně stačí.“
Jamie Siminoff, výkonný ředitel Ring, dříve uvedl, že jeho firma byla založena poté, co v dílně ve své garáži neslyšel zvuk dveřního zvonku.
Uvedl, že vytvořil dveřní zvonek přes WiFi.
Siminoff uvedl, že prodej vzrostl po jeho vystoupení v epizodě Shark Tank v roce 2013, kde vedení pořadu odmítlo financování startupu.
Na konci roku 2017 se Siminoff objevil na teleshoppingovém kanálu QVC.
Ring také vyřešil soudní spor s konkurenční bezpečnostní firmou ADT Corporation.
Ačkoli se jedna experimentální vakcína jeví schopná snižovat smrtelnost eboly, až dosud nebyla u žádných léků jasně prokázána vhodnost k léčbě stávající infekce.
Jeden koktejl protilátek, ZMapp, vypadal zpočátku slibně, ale formální studie naznačovaly, že měl v zabránění úmrtí menší užitek, než o jaký bylo usilováno.
Při testu PALM sloužil produkt ZMapp jako kontrolní přípravek. Jinak řečeno, vědci jej použili jako výchozí bod pro porovnání tří dalších druhů léčby.
USA Gymnastics podporuje dopis Olympijské komisi Spojených států a uznává naprostou potřebu Olympijské rodiny propagovat bezpečné prostředí pro všechny naše atlety.
Souhlasíme s prohlášením Olympijského výboru Spojených států amerických, že zájmy našich sportovců, jejich oddílů a samotných sportů budou lépe chráněny, pokud podpoříme smysluplné změny v rámci naší organizace, a nikoli pokud organizace ztratí oficiální pravomoci.
Gymnastický výbor USA podporuje nezávislé vyšetřování, které by pomohlo osvětlit, jak mohlo tak rozsáhlé obtěžování, jež oběti Larryho Nassara tak statečně popisovaly, zůstat tak dlouhou dobu bez povšimnutí. Dále také vítá veškeré potřebné změny.
USA Gymnastics a USOC mají stejný cíl – aby byla gymnastika a další sporty co nejbezpečnější pro sportovce, aby mohli jít za svým snem v bezpečném, pozitivním a vstřícném prostředí.
Během 60. let 20. století pracoval Brzezinski pro Johna F. Kennedyho jako jeho poradce a poté pro administrativu Lyndona B. Johnsona.
Během výběrů v roce 1976 radil Carterovi v oblasti zahraniční politiky, poté od roku 1977 do roku 1981 působil jako poradce pro národní bezpečnost (NSA), kde nahradil Henryho Kissingera.
V NSA pomáhal Carterovi při diplomatickém řešení světových záležitostí, jako jsou Dohody z Camp Davidu (1978); normalizace vztahů mezi USA a Čínou na konci 70. let; íránská revoluce, která vedla k zadržení amerických rukojmí v Íránu (1979); a sovětská invaze v Afghánistánu (1979).
Film, ve kterém hrají Ryan Gosling a Emma Stone, obdržel nominace ve všech hlavních kategoriích.
Gosling a Stoneová získali nominace na nejlepšího herce a nejlepší herečku.
K dalším nominacím patří: nejlepší film, režie, kamera, návrh kostýmů, střih, původní hudba, výprava a dekorace, střih zvuku, zvukový mix a původní scénář.
Dvě písně z filmu Audition (The Fools Who Dream) a City of Stars získaly nominace na nejlepší originální píseň. Studio Lionsgate získalo 26 nominací – více než jakékoli jiné studio.
V neděli pak prezident Spojených států Donald Trump v prohlášení vydaném přes tiskového mluvčího oznámil, že se americká vojska stáhnou ze Sýrie.
K oznámení došlo poté, co měl Trump telefonický hovor s tureckým prezidentem Recepem Tayyipem Erdoğanem.
Turecko také převezme ostrahu zajatých bojovníků ISIS, které dle prohlášení odmítly evropské národy repatriovat.
Tato skutečnost nejen potvrzuje, že přinejmenším někteří dinosauři měli peří (tato teorie je již rozšířená), ale také poskytuje podrobnosti, které fosílie obecně nemohou poskytnout, například o barevném a trojrozměrném uspořádání.
Vědci tvrdí, že peří tohoto zvířete bylo kaštanově hnědé svrchu s bledou nebo karotenově zbarvenou spodní stranou.
Objev také poskytuje náhled do problematiky vývoje peří u ptáků.
Protože dinosauří peří nemá příliš vyvinutý osten, kterému se říká rachis, ale má jiné znaky - paprsky a háčky- výzkumníci usoudili, že rachis se pravděpodobně evolučně vyvinula později než tyto ostatní znaky.
Struktura peří naznačuje, že nebyla používána za letu, ale spíše pro regulaci teploty nebo předvádění.  Vědci předpokládají, že i když se jedná o ocas mladého dinosaura, vzorek ukazuje dospělé peří a nikoliv mláděte.
Vědci předpokládají, že i když se jedná o ocas mladého dinosaura, představuje vzorek opeření dospělého zvířete a nikoli prachové peří mláděte.
Bomba ve voze, která explodovala poblíž policejního velitelství v tureckém Gaziantepu včera ráno, zabila dva policisty a zranila více než 20 dalších lidí.
Úřad guvernéra uvedl, že devatenáct zraněných bylo policejními důstojníky.
Policie uvedla, že ze spáchání útoku podezírá údajného bojovníka Islámského státu.
Zjistili, že Slunce funguje na stejném základním principu jako jiné hvězdy: aktivita všech hvězd v systému je zjevně určována jejich světelností, rotací a ničím jiným.
Na základě svítivosti a rotace se určuje Rossbyho číslo hvězdy, které souvisí s tokem plazmatu.
Čím je Rossbyho číslo menší, tím méně aktivní je hvězda z hlediska magnetického obratu.
Během své cesty se Iwasaki mnohokrát dostal do potíží.
