&quot;Ahora tenemos ratones de 4 meses que no son diabéticos y que solían ser diabéticos&quot;, agregó.
El Dr. Ehud Ur, profesor de medicina en la Universidad de Dalhousie en Halifax, Nueva Escocia y presidente de la división clínica y científica de la Asociación Canadiense de Diabetes, advirtió que la investigación aún se encuentra en sus inicios.
Al igual que otros expertos, se muestra escéptico acerca de si la diabetes se puede curar, y señala que estos hallazgos no tienen relevancia para las personas que ya tienen diabetes tipo 1.
El lunes, Sara Danius, secretaria permanente del Comité Nobel de Literatura de la Academia Sueca, anunció públicamente durante un programa de radio en Sveriges Radio en Suecia que el comité, incapaz de comunicarse directamente con Bob Dylan acerca de ganar el Premio Nobel de Literatura 2016, había abandonado sus esfuerzos por alcanzarlo.
Danius dijo: &quot;En este momento no estamos haciendo nada. Llamé y envié correos electrónicos a su colaborador más cercano y recibí respuestas muy amistosas. Por ahora, eso es suficiente&quot;.
Anteriormente, el CEO de Ring, Jamie Siminoff, comentó que la compañía comenzó cuando no se oía el timbre de su puerta desde su tienda en su garaje.
Construyó un timbre WiFi, dijo.
Siminoff dijo que las ventas aumentaron después de su aparición en 2013 en un episodio de Shark Tank donde el panel del programa rechazó financiar la puesta en marcha.
A fines de 2017, Siminoff apareció en el canal de televisión de compras QVC.
Ring también resolvió una demanda con la empresa de seguridad competidora, ADT Corporation.
Si bien una vacuna experimental parece ser capaz de reducir la mortalidad por ébola, hasta ahora no se ha demostrado claramente que ningún fármaco sea adecuado para tratar la infección existente.
Un cóctel de anticuerpos, ZMapp, inicialmente se mostró prometedor en el campo, pero los estudios formales indicaron que tenía menos beneficios de los buscados para prevenir la muerte.
En el ensayo PALM, ZMapp sirvió como control, lo que significa que los científicos lo usaron como referencia y lo compararon con los otros tres tratamientos.
USA Gymnastics apoya la carta del Comité Olímpico de los Estados Unidos y acepta la absoluta necesidad de la familia olímpica de promover un entorno seguro para todos nuestros atletas.
Estamos de acuerdo con la declaración del USOC de que los intereses de nuestros atletas y clubes, y su deporte, pueden ser mejor atendidos al avanzar con un cambio significativo dentro de nuestra organización, en lugar de la descertificación.
USA Gymnastics apoya una investigación independiente que puede arrojar luz sobre cómo el abuso de la proporción descrita con tanta valentía por los sobrevivientes de Larry Nassar podría haber pasado desapercibido durante tanto tiempo y acepta cualquier cambio necesario y apropiado.
USA Gymnastics y el USOC tienen el mismo objetivo: hacer que el deporte de la gimnasia y otros sean lo más seguros posible para que los atletas sigan sus sueños en un entorno seguro, positivo y empoderado.
A lo largo de la década de 1960, Brzezinski trabajó para John F. Kennedy como su asesor y luego para la administración de Lyndon B. Johnson.
Durante las selecciones de 1976 asesoró a Carter en política exterior, luego se desempeñó como Consejero de Seguridad Nacional (NSA) de 1977 a 1981, sucediendo a Henry Kissinger.
Como NSA, ayudó a Carter en el manejo diplomático de asuntos mundiales, como los Acuerdos de Camp David, 1978; la normalización de las relaciones entre Estados Unidos y China a fines de la década de 1970; la revolución iraní, que condujo a la crisis de los rehenes en Irán, 1979; y la invasión soviética en Afganistán, 1979.
La película, protagonizada por Ryan Gosling y Emma Stone, recibió nominaciones en todas las categorías principales.
Gosling y Stone recibieron nominaciones a Mejor Actor y Actriz respectivamente.
Las otras nominaciones incluyen Mejor Película, Director, Cinematografía, Diseño de Vestuario, Edición de Película, Banda Sonora Original, Diseño de Producción, Edición de Sonido, Mezcla de Sonido y Guión Original.
Dos canciones de la película, Audition (The Fools Who Dream) y City of Stars, recibieron nominaciones a mejor canción original. El estudio Lionsgate recibió 26 nominaciones, más que cualquier otro estudio.
A última hora del domingo, el presidente de los Estados Unidos, Donald Trump, en un comunicado emitido a través del secretario de prensa, anunció que las tropas estadounidenses abandonarían Siria.
El anuncio se hizo después de que Trump tuviera una conversación telefónica con el presidente turco, Recep Tayyip Erdoğan.
Turquía también se encargaría de proteger a los combatientes de ISIS capturados que, según el comunicado, las naciones europeas se han negado a repatriar.
Esto no solo confirma que al menos algunos dinosaurios tenían plumas, una teoría ya extendida, sino que proporciona detalles que los fósiles generalmente no pueden, como el color y la disposición tridimensional.
. Los científicos dicen que el plumaje de este animal era castaño en la parte superior con una parte inferior pálida o de color carotenoide.
El hallazgo también da una idea de la evolución de las plumas en las aves.
Debido a que las plumas de dinosaurio no tienen un eje bien desarrollado, llamado raquis, pero tienen otras características de las plumas (púas y bárbulas), los investigadores infirieron que el raquis probablemente fue un desarrollo evolutivo posterior a estas otras características.
La estructura de las plumas sugiere que no se usaron en vuelo sino para regular o exhibir la temperatura. Los investigadores sugirieron que, aunque se trata de la cola de un dinosaurio joven, la muestra muestra el plumaje de un adulto y no el plumón de un polluelo.
Los investigadores sugirieron que, aunque se trata de la cola de un dinosaurio joven, la muestra muestra el plumaje de un adulto y no el plumón de un polluelo.
Un coche bomba detonó en la sede de la policía en Gaziantep, Turquía, ayer por la mañana, mató a dos policías e hirió a más de veinte personas.
La oficina del gobernador dijo que diecinueve de los heridos eran policías.
La policía dijo que sospecha que un presunto militante de Daesh (ISIL) es responsable del ataque.
Descubrieron que el Sol operaba con los mismos principios básicos que otras estrellas: se descubrió que la actividad de todas las estrellas en el sistema estaba impulsada por su luminosidad, su rotación y nada más.
La luminosidad y la rotación se usan juntas para determinar el número de Rossby de una estrella, que está relacionado con el flujo de plasma.
Cuanto más pequeño es el número de Rossby, menos activa es la estrella con respecto a las inversiones magnéticas.
Durante su viaje, Iwasaki tuvo problemas en muchas ocasiones.
