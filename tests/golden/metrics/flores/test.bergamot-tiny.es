"Ahora tenemos ratones de 4 meses que no son diabéticos que solían ser diabéticos", agregó.
Dr. Ehud Ur, profesor de medicina en la Universidad Dalhousie en Halifax, Nueva Escocia y presidente de la división clínica y científica de la Asociación Canadiense de Diabetes advirtió que la investigación aún está en sus primeros días.
Al igual que otros expertos, es escéptico sobre si se puede curar la diabetes, señalando que estos hallazgos no tienen relevancia para las personas que ya tienen diabetes tipo 1.
El lunes, Sara Danius, secretaria permanente del Comité Nobel de Literatura de la Academia Sueca, anunció públicamente durante un programa de radio en Sveriges Radio en Suecia que el comité, incapaz de llegar directamente a Bob Dylan por ganar el Premio Nobel de Literatura 2016, había abandonado sus esfuerzos para llegar a él.
Danius dijo: "En este momento no estamos haciendo nada. He llamado y enviado correos electrónicos a su colaborador más cercano y he recibido respuestas muy amistosas. Por ahora, eso es ciertamente suficiente".
Anteriormente, el CEO de Ring, Jamie Siminoff, comentó que la compañía comenzó cuando su timbre no era audible de su tienda en su garaje.
Construyó una campana de la puerta WiFi, dijo.
Siminoff dijo que las ventas impulsaron después de su aparición en 2013 en un episodio de Shark Tank donde el panel de espectáculos declinó financiar la startup.
A finales de 2017, Siminoff apareció en el canal de televisión de compras QVC.
Ring también resolvió una demanda con una compañía de seguridad competidora, la Corporación ADT.
Si bien una vacuna experimental parece capaz de reducir la mortalidad por ébola, hasta ahora, no se ha demostrado claramente ningún medicamento adecuado para tratar la infección existente.
Un cóctel de anticuerpos, ZMapp, mostró inicialmente promesa en el campo, pero los estudios formales indicaron que tenía menos beneficio de lo que se buscaba en la prevención de la muerte.
En el ensayo PALM, ZMapp sirvió como control, lo que significa que los científicos lo usaron como referencia y compararon los otros tres tratamientos con él.
USA Gymnastics apoya la carta del Comité Olímpico de los Estados Unidos y acepta la necesidad absoluta de la familia olímpica de promover un ambiente seguro para todos nuestros atletas.
Estamos de acuerdo con la declaración de la USOC de que los intereses de nuestros atletas y clubes, y su deporte, pueden ser mejor servidos avanzando con un cambio significativo dentro de nuestra organización, en lugar de descertificación.
USA Gymnastics apoya una investigación independiente que puede arrojar luz sobre cómo el abuso de la proporción descrito tan valientemente por los sobrevivientes de Larry Nassar podría haber pasado desapercable durante tanto tiempo y abrazar cualquier cambio necesario y apropiado.
USA Gymnastics y la USOC tienen el mismo objetivo de hacer el deporte de la gimnasia, y otros, lo más seguro posible para que los atletas sigan sus sueños en un ambiente seguro, positivo y empoderado.
A lo largo de la década de 1960, Brzezinski trabajó para John F. Kennedy como su consejero y luego el Lyndon B. Administración Johnson.
Durante las selecciones de 1976 asesoró a Carter en política exterior, luego se desempeñó como Asesor de Seguridad Nacional (NSA) de 1977 a 1981, sucediendo a Henry Kissinger.
Como NSA, ayudó a Carter en el manejo diplomático de asuntos mundiales, como los Acuerdos de Camp David, 1978; la normalización de las relaciones entre Estados Unidos y China pensaba a finales de la década de 1970; la Revolución Iraní, que llevó a la crisis de rehenes de Irán, 1979; y la invasión soviética en Afganistán, 1979.
La película, con Ryan Gosling y Emma Stone, recibió nominaciones en todas las categorías principales.
Gosling y Stone recibieron nominaciones a Mejor Actor y Actriz respectivamente.
Las otras nominaciones incluyen Mejor Película, Director, Cinematografía, Diseño de vestuario, edición de películas, puntuación original, diseño de producción, edición de sonido, mezcla de sonido y guión original.
Dos canciones de la película, Audition (The Fools Who Dream) y City of Stars, recibieron nominaciones a mejor canción original. El estudio Lionsgate recibió 26 nominaciones más que cualquier otro estudio.
A finales del domingo, el presidente de Estados Unidos, Donald Trump, en un comunicado entregado a través del secretario de prensa, anunció que las tropas estadounidenses abandonarían Siria.
El anuncio se hizo después de que Trump mantuviera una conversación telefónica con el presidente turco, Recep Tayyip Erdogan.
Turquía también se haría cargo de la custodia de los combatientes de ISIS capturados que, según el comunicado, las naciones europeas se han negado a repatriarse.
Esto no sólo confirma que al menos algunos dinosaurios tenían plumas, una teoría ya extendida, sino que proporciona detalles que los fósiles generalmente no pueden, como el color y la disposición tridimensional.
. Los científicos dicen que el plumaje de este animal era de color marrón castaño en la parte superior con un lado inferior pálido o de color carotenoides.
El hallazgo también permite conocer la evolución de las plumas en las aves.
Debido a que las plumas de dinosaurio no tienen un eje bien desarrollado, llamado rachis, pero sí tienen otras características de plumas y barbillas - los investigadores inferieron que los raquis fueron probablemente un desarrollo evolutivo posterior que estas otras características.
La estructura de las plumas sugiere que no se usaron en vuelo sino para la regulación o exhibición de temperatura. Los investigadores sugirieron que, aunque esta es la cola de un dinosaurio joven, la muestra muestra plumaje para adultos y no un polluelo caído.
Los investigadores sugirieron que, aunque esta es la cola de un dinosaurio joven, la muestra muestra plumaje para adultos y no un polluelo caído.
Un coche bomba detonó en la sede de la policía en Gaziantep, Turquía, mató ayer por la mañana a dos policías e hirió a más de una veintena de personas.
La oficina del gobernador dijo que diecinueve de los heridos eran policías.
La policía dijo que sospechan de un presunto militante de Daesh (EIIL) de responsabilidad por el ataque.
Encontraron que el Sol operaba con los mismos principios básicos que otras estrellas: La actividad de todas las estrellas en el sistema se encontró impulsada por su luminosidad, su rotación, y nada más.
La luminosidad y rotación se utilizan juntos para determinar el número Rossby de una estrella, que está relacionado con el flujo de plasma.
Cuanto más pequeño es el número de Rossby, menos activa es la estrella con respecto a las reversiones magnéticas.
Durante su viaje, Iwasaki tuvo problemas en muchas ocasiones.
